"""Jobs as tests run them: in this process, over a table of seven columns."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from vaeserve_jobs import Address, LocalEngine, Order, Score, run
from vaeserve_jobs.plan import Plan
from vaeserve_jobs.tally import Tally

ROWS = 5000
MEMORY = 2**28


@dataclass
class Watched:
    """Remembers what it is told, and sets `stop` once so many rows were computed."""

    stop: threading.Event = field(default_factory=threading.Event)
    stop_after: int | None = None
    counted: int = 0
    shards: list[int] = field(default_factory=list)

    def begin(self, plan: Plan, shards: Sequence[int]) -> None:
        """Take that shards are to be run."""
        del plan
        self.begun = list(shards)

    def rows(self, count: int) -> None:
        """Count rows."""
        self.counted += count
        if self.stop_after is not None and self.counted >= self.stop_after:
            self.stop.set()

    def shard(self, shard: int, tally: Tally) -> None:
        """Take that a shard is done."""
        del tally
        self.shards.append(shard)


RunJob = Callable[..., Any]


@pytest.fixture(scope="session")
def run_job(models: Any) -> RunJob:
    """Run a job: `run_job(input, out, kind="table7", task=..., workers=2, watch=..., **order)`; returns its summary."""

    def run_one(
        source: Path | str,
        out: Path | str,
        *,
        kind: str = "table7",
        task: Any = None,
        workers: int = 2,
        memory: int = MEMORY,
        watch: Watched | None = None,
        address: Address | None = None,
        **order: Any,
    ) -> Any:
        watched = watch or Watched()
        asked = Order(
            str(source),
            str(out),
            address or Address(bundle=str(models.bundles[kind].path)),
            task or Score(),
            **order,
        )
        return run(
            asked,
            lambda model: LocalEngine(model, workers=workers, memory=memory),
            watch=watched,
            stop=watched.stop,
        )

    return run_one


@pytest.fixture(scope="session")
def table_rows(rows_of: Any) -> NDArray[np.float32]:
    """Rows of the table of seven columns, one of them with a missing value and one with an infinite one."""
    rows: NDArray[np.float32] = rows_of("table7", ROWS)
    rows[4321, 3], rows[77, 0] = np.nan, np.inf
    return rows


@pytest.fixture(scope="session")
def table_file(table_rows: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those rows in a Parquet file of row groups of 700, columns in another order, beside others."""
    columns = {f"c{index}": table_rows[:, index] for index in reversed(range(7))}
    table = pa.table({"id": np.arange(ROWS), **columns, "note": [f"n{i}" for i in range(ROWS)]})
    path = tmp_path_factory.mktemp("input") / "in.parquet"
    pq.write_table(table, path, row_group_size=700, write_page_checksum=True)
    return path


def parts(out: Path) -> dict[str, bytes]:
    """Return the bytes of an output's parts."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}
