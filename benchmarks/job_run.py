"""What `benchmarks.jobs` times, each in a process of its own: `WHAT BUNDLE ROWS OUT STARTED CORE ...`.

WHAT is `job`, the engine of `vaeserve score`; `onnxruntime`, the same session on the same threads, over rows that are
in memory; or `pandas_loop`, the loop that a user would write. STARTED is when the process began, by `time.time()`.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort
import pandas as pd
import pyarrow.parquet as pq

from vaeserve.bundle import Bundle
from vaeserve_jobs import Address, LocalEngine, Order, Score, run
from vaeserve_jobs.plan import Plan
from vaeserve_jobs.tally import Tally
from vaeserve_service.runtime import Runtime

MEMORY = 512 * 2**20
BATCH_ROWS = 8192


class Timed(NamedTuple):
    """Rows, what they took in seconds of the clock and of the processor, and when the first was done."""

    rows: int
    wall_s: float
    cpu_s: float
    first: float = 0.0


class Clock:
    """Counts seconds from now."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def timed(self, rows: int, first: float = 0.0) -> Timed:
        """Return what rows took."""
        return Timed(rows, time.perf_counter() - self._wall, time.process_time() - self._cpu, first)


class Watched:
    """Counts rows, and notes when the first came."""

    def __init__(self) -> None:
        self.counted = 0
        self.first = 0.0

    def begin(self, plan: Plan, shards: Sequence[int]) -> None:
        """Take that shards are to be run."""

    def rows(self, count: int) -> None:
        """Count rows."""
        self.first = self.first or time.time()
        self.counted += count

    def shard(self, shard: int, tally: Tally) -> None:
        """Take that a shard is done."""


def job(bundle: Path, rows: Path, out: Path, threads: int) -> Timed:
    """Score a file to `out`."""
    watched = Watched()
    order = Order(str(rows), str(out), Address(bundle=str(bundle)), Score())
    clock = Clock()
    run(
        order,
        lambda model: LocalEngine(model, workers=threads, memory=MEMORY),
        watch=watched,
        stop=threading.Event(),
    )
    return clock.timed(watched.counted, watched.first)


def onnxruntime(bundle: Path, rows: Path, out: Path, threads: int) -> Timed:
    """Run the scorer over rows in memory, and keep nothing."""
    del out
    opened = Bundle.open(bundle)
    runtime, noise = Runtime.load(opened), opened.noise[: opened.manifest.num_samples]
    table = pq.read_table(rows)
    numeric = np.column_stack([column.to_numpy() for column in table.columns])
    starts = range(0, len(numeric), BATCH_ROWS)

    def score(start: int) -> None:
        runtime.score({"numeric": numeric[start : start + BATCH_ROWS]}, noise, by_feature=False)

    clock = Clock()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(score, starts))
    return clock.timed(len(numeric))


def pandas_loop(bundle: Path, rows: Path, out: Path, threads: int) -> Timed:
    """Read a batch, score it by a session as it comes, gather the scores, and write them in the end."""
    del threads  # a session takes as many as there are
    opened = Bundle.open(bundle)
    session = ort.InferenceSession(opened.graph("scorer"))
    noise = opened.noise[: opened.manifest.num_samples]
    clock, count, frames = Clock(), 0, []
    for batch in pq.ParquetFile(rows).iter_batches(BATCH_ROWS):
        frame = batch.to_pandas()
        feeds = {"numeric": frame.to_numpy(np.float32), "noise": noise}
        elbo, likelihood, kl = session.run(["elbo", "log_likelihood", "kl"], feeds)
        frames.append(pd.DataFrame({"score": -elbo, "log_likelihood": likelihood, "kl": kl}))
        count += len(frame)
    pd.concat(frames).to_parquet(out)
    return clock.timed(count)


def main(what: str, bundle: str, rows: str, out: str, started: str, *cores: str) -> None:
    """Run on so many cores, and print the figures."""
    os.sched_setaffinity(0, {int(core) for core in cores})
    ways: dict[str, Callable[[Path, Path, Path, int], Timed]] = {
        "job": job,
        "onnxruntime": onnxruntime,
        "pandas_loop": pandas_loop,
    }
    timed = ways[what](Path(bundle), Path(rows), Path(out), len(cores))
    figures = {
        "rows": timed.rows,
        "rows_per_s": round(timed.rows / timed.wall_s),
        "cpu_us_per_row": round(timed.cpu_s / timed.rows * 1e6, 3),
        "peak_mib": _peak_kib() // 2**10,
    }
    print(json.dumps(figures | ({"first_row_s": round(timed.first - float(started), 2)} if timed.first else {})))


def _peak_kib() -> int:
    """Return this process's largest resident memory; `getrusage` has that of its parent too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1])


if __name__ == "__main__":
    main(*sys.argv[1:])
