"""A part: the Parquet file of a shard's rows, which holds its own tally. A shard is done if its part is whole."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from vaeserve_jobs.store import Store
from vaeserve_jobs.tally import Tally
from vaeserve_jobs.worst import Worst

# Of a row group: enough to compress and to read fast, and no more than a little memory.
GROUP_ROWS = 2**16
GROUP_BYTES = 32 * 2**20

_PLAN, _TALLY, _WORST = b"vaeserve.plan", b"vaeserve.tally", b"vaeserve.worst"


def part_name(shard: int) -> str:
    """Return the name of a shard's part, as Spark writes them."""
    return f"part-{shard:05}.parquet"


class PartWriter:
    """Rows on their way to a part. The same batches make the same bytes."""

    def __init__(self, writer: pa.parquet.ParquetWriter, schema: pa.Schema, *, top: int) -> None:
        self.tally = Tally()
        self._worst = Worst(top)
        self._writer = writer
        self._schema = schema
        self._waiting: list[pa.RecordBatch] = []

    def write(self, batch: pa.RecordBatch) -> None:
        """Take a batch's rows."""
        if self._worst.limit:
            written = self.tally.written - batch.num_rows
            self._worst.add(batch.column("score").to_numpy(zero_copy_only=False), written)
        self._waiting.append(batch)
        rows = sum(waiting.num_rows for waiting in self._waiting)
        if rows >= GROUP_ROWS or sum(waiting.nbytes for waiting in self._waiting) >= GROUP_BYTES:
            self._flush()

    def finish(self) -> None:
        """Write what waits, and the tally."""
        self._flush()
        said = {_TALLY: self.tally.to_json(), _WORST: self._worst.to_json()}
        self._writer.add_key_value_metadata({key: json.dumps(value) for key, value in said.items()})

    def _flush(self) -> None:
        rows = sum(waiting.num_rows for waiting in self._waiting)
        if rows:
            self._writer.write_table(pa.Table.from_batches(self._waiting, self._schema), row_group_size=rows)
        self._waiting = []


@contextmanager
def new_part(path: Path, schema: pa.Schema, *, plan: str, top: int) -> Iterator[PartWriter]:
    """Yield the writer of a part at `path`, which is finished if all goes well."""
    schema = schema.with_metadata({**(schema.metadata or {}), _PLAN: plan})
    # Dictionaries pay for names, not for numbers that are hardly ever the same.
    repeated = [field.name for field in schema if not pa.types.is_float32(field.type) and not _is_nested(field.type)]
    with pa.parquet.ParquetWriter(
        path, schema, compression="zstd", use_dictionary=repeated, write_page_checksum=True
    ) as writer:
        part = PartWriter(writer, schema, top=top)
        yield part
        part.finish()


def _is_nested(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) or isinstance(kind, pa.ExtensionType)


def read_tally(store: Store, shard: int, plan: str) -> tuple[Tally, dict[str, Any]] | None:
    """Return a part's tally and its worst rows; None if it isn't there, isn't whole, or is of another plan."""
    try:
        with store.open(part_name(shard)) as file:
            metadata = pa.parquet.read_metadata(file).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    if metadata.get(_PLAN, b"").decode() != plan or _WORST not in metadata:
        return None
    return Tally.from_json(json.loads(metadata[_TALLY])), json.loads(metadata[_WORST])


def take_rows(store: Store, shard: int, positions: list[int]) -> pa.Table:
    """Return some rows of a part, by their positions in it, in their order; no other row group is read."""
    with store.open(part_name(shard)) as file, pa.parquet.ParquetFile(file) as parquet:
        order = sorted(range(len(positions)), key=positions.__getitem__)
        tables, first = [], 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            here = [positions[index] - first for index in order if first <= positions[index] < first + rows]
            if here:
                tables.append(parquet.read_row_group(group).take(here))
            first += rows
    return pa.concat_tables(tables)
