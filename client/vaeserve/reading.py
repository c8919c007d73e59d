"""Rows as a model takes them, with their labels, a batch at a time."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import DataError, InvalidInputError
from vaeserve.labels import Labels
from vaeserve.signature import Signature
from vaeserve.source import BATCH_ROWS, Source, inputs_of


class Batch(NamedTuple):
    """Some rows: a model's input tensors by name, and which rows are anomalous, bool [rows], None without labels."""

    inputs: dict[str, NDArray[Any]]
    anomalous: NDArray[np.bool_] | None


def read(
    source: Source,
    signature: Signature,
    *,
    label: str | None = None,
    normal: str | None = None,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Batch]:
    """Yield the rows of `source`, in order, as a model of `signature` takes them; its other columns are left out.

    Raises DataError, naming the column, where they don't fit, where there are none, or where `label` and `normal`
    call every row anomalous.
    """
    labels = Labels.of(source, label, normal)
    source = source.as_text([column.name for column in signature.categorical_columns])
    source = source.as_numbers([column.name for column in signature.numeric_columns])
    empty = True
    for batch in source.batches(batch_rows):
        anomalous = None if labels is None else labels.read(batch)
        try:
            inputs = inputs_of(batch, signature)
        except InvalidInputError as error:
            raise DataError(f"{source.name}: {str(error).removeprefix('rows: ')}") from None
        empty = False
        yield Batch(inputs, anomalous)
    if empty:
        raise DataError(f"{source.name}: no rows; expected one or more")
    if labels is not None:
        labels.finish()
