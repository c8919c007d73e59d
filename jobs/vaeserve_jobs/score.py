"""Scoring a file of rows to a Parquet file, a batch at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from vaeserve.errors import ConfigError, DataError, InvalidInputError
from vaeserve.scores import RowStatus, ScoreOptions, Scores
from vaeserve.signature import Signature
from vaeserve.source import Source, inputs_of
from vaeserve_jobs.engine import Engine, Inputs
from vaeserve_jobs.output import new_output, writing

BATCH_ROWS = 8192
BATCH_BYTES = 16 * 2**20

_ATTRIBUTIONS = pa.list_(pa.struct([("feature", pa.string()), ("excess", pa.float32())]))
_COLUMNS = {
    "score": pa.float32(),
    "elbo": pa.float32(),
    "log_likelihood": pa.float32(),
    "kl": pa.float32(),
    "p_value": pa.float64(),
    "anomalous": pa.bool_(),
    "status": pa.string(),
}


@dataclass
class Summary:
    """How many rows a job scored, how many of them are anomalous, and how many it could not score."""

    rows: int = 0
    anomalous: int = 0
    unscorable: int = 0

    def add(self, scores: Scores) -> None:
        """Count a batch."""
        self.rows += len(scores)
        self.anomalous += int(scores.anomalous.sum())
        self.unscorable += int((scores.status != RowStatus.OK).sum())


def score_file(
    source: Source,
    out: Path,
    *,
    engine: Engine,
    options: ScoreOptions,
    keep: Sequence[str] = (),
    on_batch: Callable[[Summary], None] = lambda _: None,
) -> Summary:
    """Write the score of every row of `source` to the Parquet file `out`, in order, with its `keep` columns.

    Written beside `out` and renamed: all of it or nothing. Raises DataError or InvalidInputError, naming the column,
    for rows that the model can't take, and ConfigError if `out` can't be written.
    """
    signature = engine.signature
    source = source.as_numbers([column.name for column in signature.numeric_columns])
    source = source.as_text([column.name for column in signature.categorical_columns])
    unknown = [name for name in keep if name not in source.schema.names]
    if unknown:
        raise DataError(
            f"{source.name}: no column {unknown[0]!r} to keep; expected one of {', '.join(source.schema.names)}"
        )
    taken = [name for name in keep if name in _schema(source, (), options).names]
    if taken:
        raise ConfigError(f"--keep {taken[0]}: the output has a column of that name; expected another")
    schema = _schema(source, keep, options)
    summary = Summary()
    with new_output(out, lambda path: pyarrow.parquet.ParquetWriter(path, schema, compression="zstd")) as writer:
        for batch in source.batches(batch_rows(engine.signature)):
            scores = engine.score(_inputs(batch, engine, source.name), options)
            with writing(out):
                writer.write_batch(_to_batch(batch.select(list(keep)), scores, schema))
            summary.add(scores)
            on_batch(summary)
        if summary.rows == 0:
            raise DataError(f"{source.name}: no rows; expected one or more")
    return summary


def batch_rows(signature: Signature) -> int:
    """Return how many rows of a signature make a batch, and a message that a service takes."""
    return max(1, min(BATCH_ROWS, BATCH_BYTES // signature.row_bytes))


def _inputs(batch: pa.RecordBatch, engine: Engine, source: str) -> Inputs:
    try:
        return inputs_of(batch, engine.signature)
    except InvalidInputError as error:
        raise InvalidInputError(f"{source}: {error}") from None


def _schema(source: Source, keep: Sequence[str], options: ScoreOptions) -> pa.Schema:
    fields = [source.schema.field(name) for name in keep]
    fields += [pa.field(name, kind) for name, kind in _COLUMNS.items()]
    if options.top_features:
        fields.append(pa.field("top_features", _ATTRIBUTIONS))
    return pa.schema(fields)


def _to_batch(kept: pa.RecordBatch, scores: Scores, schema: pa.Schema) -> pa.RecordBatch:
    names = np.array([status.name for status in RowStatus])
    arrays = [*kept.columns]
    for name, kind in _COLUMNS.items():
        values = names[scores.status] if name == "status" else getattr(scores, name)
        arrays.append(pa.array(values, kind))
    if "top_features" in schema.names:
        rows = [[attribution._asdict() for attribution in row] for row in scores.attributions]
        arrays.append(pa.array(rows, _ATTRIBUTIONS))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
