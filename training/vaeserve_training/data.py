"""Rows to learn from: a source's columns as arrays, its labels, and the parts they are split into."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaeserve.errors import DataError
from vaeserve.signature import Signature
from vaeserve.source import Source, images_of, inputs_of, text_columns
from vaeserve_training.config import DataConfig

FEWEST_ROWS = 10


@dataclass(frozen=True)
class Dataset:
    """Rows of one signature.

    inputs: the model's raw input tensors, by name.
    anomalous: bool [rows], or None where there are no labels.
    """

    name: str
    signature: Signature
    inputs: dict[str, NDArray[Any]]
    anomalous: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __getitem__(self, rows: slice | NDArray[Any]) -> Self:
        return type(self)(
            self.name,
            self.signature,
            {name: array[rows] for name, array in self.inputs.items()},
            None if self.anomalous is None else self.anomalous[rows],
        )

    @property
    def constant_columns(self) -> list[str]:
        """The table's columns that hold one value only."""
        if not self.signature.columns:
            return []
        numeric = self.inputs["numeric"]
        same = (numeric == numeric[:1]).all(axis=0)
        return [name for name, constant in zip(self.signature.features, same, strict=True) if constant]

    def sha256(self) -> str:
        """Return a fingerprint of the rows, in order, and of their labels."""
        digest = hashlib.sha256(repr(self.signature).encode())
        for array in (*self.inputs.values(), self.anomalous):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Split:
    """A dataset in parts that share no row.

    train, validation (for stopping) and calibration hold normal rows alone; test holds other normal rows and every
    anomalous one.
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
) -> Dataset:
    """Read all rows of `source`.

    `label` names the column of labels, 0 for normal and 1 for anomalies unless `normal` names the normal value. What
    the columns `drop` hold isn't learned from.

    Raises DataError, naming the column, for what can't be learned from.
    """
    label = label or source.label
    names = set(source.schema.names)
    for column in (*drop, *([label] if label else [])):
        if column not in names:
            raise DataError(f"{source.name}: no column {column!r}; expected one of {', '.join(sorted(names))}")
    source = source.as_numbers([name for name in source.schema.names if name != label and name not in drop])
    table = source.table()
    anomalous = None if label is None else _anomalous(table, label, normal, source.name)
    if source.is_images:
        images = images_of(table)
        return Dataset(source.name, Signature.image(images.shape[1:]), {"image": images}, anomalous)
    learned = [name for name in source.schema.names if name != label and name not in drop]
    if not learned:
        raise DataError(f"{source.name}: no columns to learn from; expected one or more beside the label")
    _refuse_text(table, learned, source.name)
    signature = Signature.table(learned)
    inputs = inputs_of(table, signature)
    _refuse_missing(inputs["numeric"], learned, source.name)
    return Dataset(source.name, signature, inputs, anomalous)


def _refuse_text(table: pa.Table, names: list[str], source: str) -> None:
    text = text_columns(table, names)
    if text:
        first, described = next(iter(text.items()))
        others = f" (and {len(text) - 1} more)" if len(text) > 1 else ""
        drops = " ".join(f"--drop {name!r}" for name in text)
        raise DataError(f"{source}: column {first!r}{others}: {described}; expected numbers, or else {drops}")


def _refuse_missing(numeric: NDArray[np.float32], names: list[str], source: str) -> None:
    bad = ~np.isfinite(numeric)
    columns = np.flatnonzero(bad.any(axis=0))
    if len(columns):
        first = columns[0]
        row = int(np.flatnonzero(bad[:, first])[0])
        raise DataError(
            f"{source}: column {names[first]!r}: {int(bad[:, first].sum())} missing or infinite values, the first in "
            f"row {row}; expected finite numbers: fill them in, leave the rows out, or --drop {names[first]!r}"
        )


def _anomalous(table: pa.Table, label: str, normal: str | None, source: str) -> NDArray[np.bool_]:
    values = table.column(label).to_pylist()
    for row, value in enumerate(values):
        if value is None or value != value or (normal is None and value not in (0, 1)):
            expected = "0 (normal) or 1 (anomaly), or --normal VALUE" if normal is None else "a label"
            raise DataError(f"{source}: column {label!r} holds {value!r} in row {row}; expected {expected}")
    if normal is None:
        return np.array(values, dtype=bool)
    anomalous = np.array([not _is(value, normal) for value in values])
    if anomalous.all():
        seen = ", ".join(sorted(map(str, set(values)))[:10])
        raise DataError(f"{source}: column {label!r} never holds {normal!r}; expected one of {seen}")
    return anomalous


def _is(value: object, text: str) -> bool:
    """Tell whether a label is what was typed: text to the letter, numbers by value, truth in any case."""
    if isinstance(value, bool):
        return str(value).lower() == text.lower()
    if isinstance(value, int | float | Decimal):
        try:
            return Decimal(str(value)) == Decimal(text)
        except InvalidOperation:
            return False
    return str(value) == text


def split(dataset: Dataset, config: DataConfig, *, seed: int) -> Split:
    """Split `dataset` at random; labels serve only to keep anomalous rows out of all parts but the test.

    Raises DataError for fewer normal rows than make four parts.
    """
    labels = np.zeros(len(dataset), bool) if dataset.anomalous is None else dataset.anomalous
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(~labels))
    if len(normal) < FEWEST_ROWS:
        raise DataError(f"{dataset.name}: {len(normal)} normal rows; expected {FEWEST_ROWS} or more")
    shares = (config.validation, config.calibration, config.test)
    sizes = [max(1, round(share * len(normal))) for share in shares]
    if sum(sizes) >= len(normal):
        raise DataError(f"{dataset.name}: {len(normal)} normal rows leave none to train on; hold out less")
    validation, calibration, test, train = np.split(normal, np.cumsum(sizes))
    return Split(
        train=dataset[train],
        validation=dataset[validation],
        calibration=dataset[calibration],
        test=dataset[np.concatenate([test, np.flatnonzero(labels)])],
    )
