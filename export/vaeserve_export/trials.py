"""Rows to try a bundle on: its golden rows, repeated and shaken, for it holds no others."""

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from vaeserve.scores import RowStatus
from vaeserve.signature import MISSING, Column, Signature
from vaeserve_export.promises import LATENTS
from vaeserve_service.runtime import Arrays, golden_inputs

ROWS = 200
EXTREMES = (1e30, -1e30, 1e-30, -3e38, 3.4e38, 0.0)
_UNKNOWN = "?"


def trial_rows(golden: Arrays, signature: Signature) -> Arrays:
    """Return rows that the model takes, with latents: the golden ones, their gaps filled, repeated and shaken."""
    inputs, generator = golden_inputs(golden), np.random.default_rng(0)
    rows: Arrays = {LATENTS: _shaken(_repeated(golden[LATENTS]), generator)}
    for spec in signature.inputs:
        array = inputs[spec.name]
        if spec.dtype == "FLOAT32":
            rows[spec.name] = _shaken(_repeated(_filled(array)), generator)
        elif spec.dtype == "STRING":
            rows[spec.name] = _drawn(signature, generator)
        else:
            noise = generator.integers(-16, 17, (ROWS, *array.shape[1:]))
            rows[spec.name] = np.clip(_repeated(array) + noise, 0, 255).astype(np.uint8)
    return rows


def extreme_rows(rows: Arrays) -> Arrays:
    """Return finite rows of which some are huge, tiny, or zero throughout."""
    extremes = {name: array.copy() for name, array in rows.items()}
    for index, value in enumerate(EXTREMES):
        if "numeric" in extremes:
            extremes["numeric"][index] = value
            extremes["numeric"][len(EXTREMES) + index, index % rows["numeric"].shape[1]] = value
        if "image" in extremes:
            extremes["image"][index] = 255 * (index % 2)
    return extremes


def spoiled_rows(
    rows: Arrays, signature: Signature, masked: Collection[str] = ()
) -> tuple[Arrays, list[frozenset[RowStatus]]]:
    """Return rows of which every third lacks something, and the statuses that each may have.

    masked: columns that the model neither sees nor scores.
    """
    spoiled = {name: array.astype(object) if array.dtype.kind in "U" else array.copy() for name, array in rows.items()}
    statuses = [frozenset({RowStatus.OK})] * ROWS
    for row in range(0, ROWS if signature.columns else 0, 3):
        kind = (row // 3) % 4
        if kind == 0:
            _miss(spoiled, row, slice(None))
            statuses[row] = frozenset({RowStatus.UNSCORABLE_MISSING})
        elif kind == 1:
            _miss(spoiled, row, row)
            statuses[row] = frozenset({_status_without(_columns_at(signature, row), signature, masked)})
        elif kind == 2 and "numeric" in spoiled:
            spoiled["numeric"][row, row % spoiled["numeric"].shape[1]] = np.inf if row % 2 else -np.inf
            statuses[row] = frozenset({RowStatus.UNSCORABLE_NOT_FINITE})
        elif kind == 3 and "categorical" in spoiled:
            spoiled["categorical"][row, row % spoiled["categorical"].shape[1]] = _unknown(signature)
            statuses[row] = frozenset({RowStatus.OK, RowStatus.UNSCORABLE_UNKNOWN_CATEGORY})
    return spoiled, statuses


def _columns_at(signature: Signature, position: int) -> list[Column]:
    """Return the columns that `_miss` empties at a position: one of each input."""
    groups = [group for group in (signature.numeric_columns, signature.categorical_columns) if group]
    return [group[position % len(group)] for group in groups]


def _status_without(missing: list[Column], signature: Signature, masked: Collection[str]) -> RowStatus:
    """Return the status of a row that lacks some columns: missing where it must not be, or where nothing is left."""
    learned = [column for column in signature.columns if column.name not in masked]
    left = [column for column in learned if column not in missing]
    required = any(column in learned and not column.nullable for column in missing)
    return RowStatus.UNSCORABLE_MISSING if required or not left else RowStatus.OK


def _miss(rows: Arrays, row: int, column: int | slice) -> None:
    for name, missing in (("numeric", np.nan), ("categorical", MISSING)):
        if name in rows:
            rows[name][row, column % rows[name].shape[1] if isinstance(column, int) else column] = missing


def _repeated(array: NDArray[np.generic]) -> NDArray[np.float64]:
    return array[np.arange(ROWS) % len(array)].astype(np.float64)


def _shaken(array: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float32]:
    # Binary columns too: the models take any number there, and promise the same of it.
    size = array.std(0) + 1e-3 * np.abs(array).max(0)
    largest = float(np.finfo(np.float32).max)
    shaken = np.clip(array + 0.1 * size * generator.normal(size=array.shape), -largest, largest)
    return np.asarray(shaken, np.float32)


def _filled(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return columns with the median of their finite values in place of others, 0 where there are none."""
    filled = array.copy()
    for column in filled.T:
        known = column[np.isfinite(column)]
        column[~np.isfinite(column)] = np.median(known) if len(known) else 0.0
    return filled


def _drawn(signature: Signature, generator: np.random.Generator) -> NDArray[np.str_]:
    return np.column_stack([generator.choice(column.categories, ROWS) for column in signature.categorical_columns])


def _unknown(signature: Signature) -> str:
    return _UNKNOWN * (1 + max(len(name) for column in signature.categorical_columns for name in column.categories))
