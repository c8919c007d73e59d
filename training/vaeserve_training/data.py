"""Rows to learn from: a source's columns as arrays, its labels, and the parts they are split into."""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaeserve.errors import ConfigError, DataError, InvalidInputError
from vaeserve.fingerprint import Fingerprint
from vaeserve.labels import Labels
from vaeserve.reading import read
from vaeserve.signature import Kind, Signature
from vaeserve.source import IMAGE, Source, inputs_of
from vaeserve_training.config import DataConfig
from vaeserve_training.kinds import ColumnReport, Inference

FEWEST_ROWS = 10
ROWS_AT_ONCE = 16_384


Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows of one signature, or a view of some of them.

    arrays: the raw input tensors by name, which may lie on disk; views share them.
    anomalous: bool [rows], or None where there are no labels.
    rows: which rows of `arrays` these are, and in what order; None for all.
    reports: what was seen in a table's columns.
    """

    name: str
    signature: Signature
    arrays: Arrays
    anomalous: NDArray[np.bool_] | None = None
    rows: NDArray[np.intp] | None = None
    reports: tuple[ColumnReport, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()))) if self.rows is None else len(self.rows)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Self:
        """Return a view of `rows`: a slice, positions or a mask."""
        positions = np.arange(len(self)) if self.rows is None else self.rows
        anomalous = None if self.anomalous is None else self.anomalous[rows]
        return replace(self, rows=positions[rows], anomalous=anomalous)

    def take(self, positions: slice | NDArray[Any]) -> Arrays:
        """Return the inputs of the rows at `positions` of this view, in memory."""
        rows = positions if self.rows is None else self.rows[positions]
        return {name: np.asarray(array[rows]) for name, array in self.arrays.items()}

    @property
    def inputs(self) -> Arrays:
        """The raw input tensors by name, of all rows; for a view they are gathered anew."""
        return self.arrays if self.rows is None else self.take(slice(None))

    def batches(self) -> Iterator[Arrays]:
        """Yield the rows' inputs, a part that fits in memory at a time."""
        return (self.take(some) for some in _some(len(self)))

    def sha256(self) -> str:
        """Return a fingerprint of the rows, in order; labels don't enter it."""
        fingerprint = Fingerprint(self.signature)
        for some in _some(len(self)):
            fingerprint.update(self.take(some))
        return fingerprint.hexdigest()


def _some(rows: int) -> Iterator[slice]:
    """Yield slices that cover `rows`, a part that fits in memory at a time."""
    return (slice(start, min(start + ROWS_AT_ONCE, rows)) for start in range(0, rows, ROWS_AT_ONCE))


@dataclass(frozen=True)
class Split:
    """A dataset in parts that share no row.

    train, validation (for stopping) and calibration hold normal rows alone; test holds other normal rows and every
    anomalous one. A part whose share is 0 has no normal rows.
    """

    train: Dataset
    validation: Dataset
    calibration: Dataset
    test: Dataset


def load_dataset(
    source: Source,
    *,
    label: str | None = None,
    normal: str | None = None,
    drop: Sequence[str] = (),
    kinds: Mapping[str, Kind] | None = None,
    memory_bytes: int | None = None,
) -> Dataset:
    """Read all rows of `source`: a table twice, first to learn what its columns are, then to keep them.

    `label` names the column of labels, 0 for normal and 1 for anomalies unless `normal` names the normal value. What
    the columns `drop` hold isn't learned from. `kinds` states what columns are, where their looks deceive. Of images
    nothing but the images is learned from.

    Arrays larger than `memory_bytes` together (None: never) lie on disk, in nameless files in the folder for temporary
    ones (TMPDIR), which are gone when the process is. Rows and bits are the same in both. A category longer than all
    that are known is cut to one character more than those.

    Raises DataError, naming the column, for what can't be learned from.
    """
    label, kinds = label or source.label, kinds or {}
    labels = Labels.of(source, label, normal)
    _refuse_names(source, label=label, drop=drop, kinds=kinds)
    if source.is_images:
        return _load_images(source, labels, memory_bytes=memory_bytes)
    learned = [name for name in source.schema.names if name != label and name not in drop]
    if not learned:
        raise DataError(f"{source.name}: no columns to learn from; expected one or more beside the label")
    text = [name for name in learned if kinds.get(name) == "categorical"]
    source = source.as_text(text).as_numbers([name for name in learned if name not in text])
    return _load_table(source, labels, learned=learned, kinds=kinds, memory_bytes=memory_bytes)


def read_dataset(
    source: Source, signature: Signature, *, label: str | None = None, normal: str | None = None
) -> Dataset:
    """Read all rows of `source` as a model of `signature` takes them; its other columns are left out.

    Raises DataError, naming the column, where they don't fit.
    """
    batches = list(read(source, signature, label=label, normal=normal))
    arrays = {name: np.concatenate([batch.inputs[name] for batch in batches]) for name in batches[0].inputs}
    labels = [batch.anomalous for batch in batches if batch.anomalous is not None]
    return Dataset(source.name, signature, arrays, np.concatenate(labels) if labels else None)


def _load_table(
    source: Source,
    labels: Labels | None,
    *,
    learned: list[str],
    kinds: Mapping[str, Kind],
    memory_bytes: int | None,
) -> Dataset:
    inference = Inference(source.name, source.schema, names=learned, kinds=kinds)
    rows = 0
    for batch in source.batches():
        anomalous = np.zeros(batch.num_rows, bool) if labels is None else labels.read(batch)
        if labels is not None:
            labels.compare(batch, anomalous, learned)
        inference.update(batch, ~anomalous)
        rows += batch.num_rows
    _refuse_no_rows(source, rows)
    all_labels = None if labels is None else labels.finish()
    inferred = inference.finish()
    signature = Signature.table(inferred.columns)
    arrays = _arrays(source, signature, rows, memory_bytes)
    for start, batch in _batches(source, rows):
        for name, array in _inputs(source, batch, signature, start).items():
            arrays[name][start : start + len(array)] = array
    return Dataset(source.name, signature, arrays, all_labels, reports=inferred.reports)


def _load_images(source: Source, labels: Labels | None, *, memory_bytes: int | None) -> Dataset:
    signature = Signature.image(tuple(source.schema.field(IMAGE).type.shape))
    rows = sum(batch.num_rows for batch in source.batches()) if source.rows is None else source.rows
    _refuse_no_rows(source, rows)
    arrays = _arrays(source, signature, rows, memory_bytes)
    for start, batch in _batches(source, rows):
        if labels is not None:
            labels.read(batch)
        arrays[IMAGE][start : start + batch.num_rows] = inputs_of(batch, signature)[IMAGE]
    return Dataset(source.name, signature, arrays, None if labels is None else labels.finish())


def _batches(source: Source, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield each batch with the number of its first row; raises DataError for other than `rows` in all."""
    start = 0
    for batch in source.batches():
        if start + batch.num_rows <= rows:
            yield start, batch
        start += batch.num_rows
    if start != rows:
        raise DataError(f"{source.name}: {start} rows, and {rows} a moment ago; expected a file that stays as it is")


def _inputs(source: Source, batch: pa.RecordBatch, signature: Signature, start: int) -> Arrays:
    try:
        inputs = inputs_of(batch, signature)
    except InvalidInputError as error:
        raise DataError(f"{source.name}: {str(error).removeprefix('rows: ')}") from None
    infinite = np.isinf(inputs.get("numeric", np.empty((0, 0))))
    if infinite.any():
        row, column = np.argwhere(infinite)[0]
        name = signature.numeric_columns[column].name
        raise DataError(
            f"{source.name}: column {name!r} holds {batch.column(name)[int(row)]} in row {start + row}; expected "
            f"numbers within +-3.4e38: mend it, leave the row out, or --drop {name!r}"
        )
    return inputs


def _arrays(source: Source, signature: Signature, rows: int, memory_bytes: int | None) -> Arrays:
    """Return arrays for `rows`, in memory if they have no more than `memory_bytes` together, or else on disk."""
    longest = max((len(name) for column in signature.columns for name in column.categories), default=0)
    dtypes: dict[str, np.dtype[Any]] = {
        "FLOAT32": np.dtype(np.float32),
        "UINT8": np.dtype(np.uint8),
        "STRING": np.dtype(f"U{longest + 1}"),
    }
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        spec.name: ((rows, *spec.shape[1:]), dtypes[spec.dtype]) for spec in signature.inputs
    }
    size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())
    if memory_bytes is None or size <= memory_bytes:
        return {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
    try:
        return {name: _on_disk(shape, dtype) for name, (shape, dtype) in shapes.items()}
    except OSError as error:
        raise DataError(
            f"{source.name}: {size} bytes of rows, for which {tempfile.gettempdir()} has no room: {error.strerror}; "
            "expected TMPDIR to name a folder on a larger disk"
        ) from None


def _on_disk(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    with tempfile.TemporaryFile(prefix="vaeserve-") as file:
        size = math.prod(shape) * dtype.itemsize
        if hasattr(os, "posix_fallocate"):  # so that a full disk is told here, and not by a signal
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)
        return np.memmap(file, dtype, "r+", shape=shape)  # which outlives the file's name and its descriptor


def _refuse_no_rows(source: Source, rows: int) -> None:
    if rows == 0:
        raise DataError(f"{source.name}: no rows; expected one or more")


def _refuse_names(source: Source, *, label: str | None, drop: Sequence[str], kinds: Mapping[str, Kind]) -> None:
    """Raise DataError for columns that aren't there, or are told to be two things; ConfigError for no kind."""
    source.require([*drop, *kinds])
    for column, kind in kinds.items():
        if kind not in get_args(Kind):
            raise ConfigError(f"--kind {column!r}={kind}: expected one of {', '.join(get_args(Kind))}")
        if source.is_images:
            raise DataError(f"{source.name}: --kind {column!r}={kind}: these are images; expected a table")
        if column == label:
            raise DataError(f"{source.name}: column {column!r}: labels given as a feature; expected --label or --kind")
        if column in drop:
            raise DataError(f"{source.name}: column {column!r}: dropped and given a kind; expected --drop or --kind")


def split(dataset: Dataset, config: DataConfig, *, seed: int) -> Split:
    """Split `dataset` at random; labels serve only to keep anomalous rows out of all parts but the test.

    Raises DataError for fewer normal rows than make four parts, and for more categories than rows to learn them from.
    """
    labels = np.zeros(len(dataset), bool) if dataset.anomalous is None else dataset.anomalous
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(~labels))
    if len(normal) < FEWEST_ROWS:
        raise DataError(f"{dataset.name}: {len(normal)} normal rows; expected {FEWEST_ROWS} or more")
    shares = (config.validation, config.calibration, config.test)
    sizes = [max(1, round(share * len(normal))) if share else 0 for share in shares]
    if sum(sizes) >= len(normal):
        raise DataError(f"{dataset.name}: {len(normal)} normal rows leave none to train on; hold out less")
    validation, calibration, test, train = np.split(normal, np.cumsum(sizes))
    for column in dataset.signature.categorical_columns:
        if len(column.categories) > len(train):
            raise DataError(
                f"{dataset.name}: column {column.name!r}: {len(column.categories)} categories, more than the "
                f"{len(train)} rows to train on; expected fewer, or else --drop {column.name!r}"
            )
    return Split(
        train=dataset[train],
        validation=dataset[validation],
        calibration=dataset[calibration],
        test=dataset[np.concatenate([test, np.flatnonzero(labels)])],
    )
