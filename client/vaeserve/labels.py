"""Which rows are anomalous, as a column says; labels evaluate, and are never learned from."""

from decimal import Decimal, InvalidOperation
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaeserve.errors import DataError
from vaeserve.source import Source

_MOST_NAMED = 10
_GLANCE = 64  # rows, in which most columns differ from the labels


class Labels:
    """The column of labels, read a batch at a time: 0 is normal and 1 an anomaly, unless `normal` names the value."""

    def __init__(self, source: str, label: str, normal: str | None) -> None:
        self._source = source
        self._label = label
        self._normal = normal
        self._rows = 0
        self._parts: list[NDArray[np.bool_]] = []
        self._seen: set[str] = set()
        self._same: set[tuple[str, bool]] | None = None

    @classmethod
    def of(cls, source: Source, label: str | None, normal: str | None) -> Self | None:
        """Return the labels of `source` in the column `label`, or where it knows one itself; None without either.

        Raises DataError for a column that isn't there, and for the value of normal rows without a column.
        """
        label = label or source.label
        if label is not None:
            source.require([label])
            return cls(source.name, label, normal)
        if normal is not None:
            raise DataError(f"{source.name}: --normal {normal!r} without labels; expected --label COLUMN too")
        return None

    def read(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Return which rows are anomalous; raises DataError, naming the row, for what is no label."""
        values = batch.column(self._label).to_pylist()
        for row, value in enumerate(values, start=self._rows):
            if value is None or value != value or (self._normal is None and value not in (0, 1)):
                expected = "0 (normal) or 1 (anomaly), or --normal VALUE" if self._normal is None else "a label"
                raise DataError(
                    f"{self._source}: column {self._label!r} holds {value!r} in row {row}; expected {expected}"
                )
        if self._normal is None:
            anomalous = np.array(values, dtype=bool)
        else:
            known = {value: not _is(value, self._normal) for value in set(values)}
            anomalous = np.array([known[value] for value in values], dtype=bool)
            self._seen.update(map(str, sorted(known, key=str)[:_MOST_NAMED]))
        self._rows += len(values)
        self._parts.append(anomalous)
        return anomalous

    def compare(self, batch: pa.RecordBatch, anomalous: NDArray[np.bool_], names: list[str]) -> None:
        """Strike out the columns that differ from the labels, as they are or as 0 and 1."""
        if self._same is None:
            self._same = {(name, as_bits) for name in names for as_bits in (False, True)}
        for name, as_bits in tuple(self._same):
            labels = pa.array(anomalous.astype(np.int8)) if as_bits else batch.column(self._label)
            if not _alike(batch.column(name), labels):
                self._same.discard((name, as_bits))

    def finish(self) -> NDArray[np.bool_]:
        """Return which of all rows are anomalous.

        Raises DataError where none is normal, or where a column that would be learned from is the labels.
        """
        anomalous = np.concatenate(self._parts)
        if anomalous.all():
            column = f"{self._source}: column {self._label!r}"
            if self._normal is None:
                raise DataError(f"{column} calls all {self._rows} rows anomalous; expected some that are normal")
            seen = ", ".join(sorted(self._seen)[:_MOST_NAMED])
            raise DataError(f"{column} never holds {self._normal!r}; expected one of {seen}")
        if self._same and anomalous.any():
            name = min(self._same)[0]
            raise DataError(
                f"{self._source}: column {name!r} equals the label {self._label!r} in every row: labels given as a "
                f"feature; expected --drop {name!r}"
            )
        return anomalous


def _alike(values: pa.Array, labels: pa.Array) -> bool:
    glance: bool = values[:_GLANCE].to_pylist() == labels[:_GLANCE].to_pylist()
    return glance and values.to_pylist() == labels.to_pylist()


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
