"""Rows cut into parts that a service takes, and results cut and joined by their rows."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

R = TypeVar("R")

Arrays = Mapping[str, NDArray[Any]]

# Far within a service's limits as they are by default, and enough to cost no more a row: 100,000 rows, counted by
# their samples, and 64 MiB of a request or a response.
MOST_ROWS = 4096
MOST_BYTES = 4 * 2**20
MOST_SAMPLES = 2**16
MOST_FEATURES = 2**17

# What the wire adds to a string, and the bytes that most of its characters have at most.
_STRING_BYTES, _CHARACTER_BYTES = 3, 2


def row_count(inputs: Arrays) -> int:
    """Return how many rows there are; 0 for what has none, which the service will refuse."""
    first = next(iter(inputs.values()), None)
    return len(first) if first is not None and first.ndim else 0


def byte_count(inputs: Arrays) -> int:
    """Return about how many bytes rows have on the wire: exact for numbers."""
    return sum(map(_bytes, inputs.values()))


def _bytes(array: NDArray[Any]) -> int:
    if array.dtype.kind not in "UOT":
        return array.nbytes
    # What is no string, the wire will refuse.
    return sum(_STRING_BYTES + _CHARACTER_BYTES * len(value) for value in array.flat if isinstance(value, str))


def part_rows(inputs: Arrays, *, num_samples: int = 1, top_features: int = 0) -> int:
    """Return how many of these rows make a part."""
    rows = row_count(inputs)
    by_bytes = MOST_BYTES * rows // max(1, byte_count(inputs))
    by_answer = MOST_FEATURES // max(1, top_features)
    return max(1, min(MOST_ROWS, by_bytes, MOST_SAMPLES // num_samples, by_answer))


def cut(inputs: Arrays, rows: int, *, start: int = 0) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield so many rows at a time, from the row `start` on; no rows are one part without any."""
    for first in range(start, max(start + 1, row_count(inputs)), rows):
        yield {name: array[first : first + rows] for name, array in inputs.items()}


def take(result: R, rows: slice) -> R:
    """Return the part of a result that some rows have: its arrays, its mappings of arrays, its tuples."""
    return type(result)(*[pick(getattr(result, name), rows) for name, pick in _picks(cast(Hashable, type(result)))])


@lru_cache
def _picks(kind: Any) -> list[tuple[str, Callable[[Any, slice], Any]]]:
    return [(field.name, _keep if field.name in ("model", "version") else _pick_rows) for field in fields(kind)]


def _keep(value: Any, rows: slice) -> Any:
    del rows
    return value


def _pick_rows(value: Any, rows: slice) -> Any:
    return {name: array[rows] for name, array in value.items()} if isinstance(value, dict) else value[rows]


def joined(results: Sequence[R]) -> R:
    """Return the result of all rows of one or more results of one model's version, in their order."""
    first = results[0]
    if len(results) == 1:
        return first
    names = [name for name, _ in _picks(cast(Hashable, type(first)))]
    return type(first)(*[_join([getattr(result, name) for result in results]) for name in names])


def _join(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    if isinstance(first, dict):
        return {name: np.concatenate([value[name] for value in values]) for name in first}
    return tuple(entry for value in values for entry in value) if isinstance(first, tuple) else first
