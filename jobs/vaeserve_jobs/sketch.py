"""Quantiles of scores in bounded memory: counts by the leading bits of single-precision numbers, which add up exactly.

A bucket holds the numbers of one sign, exponent and 8 leading bits of fraction, so that its middle is within 1/512 of
each of them: the error of a quantile relative to its value, whatever the numbers and however they were divided.
Buckets that are relative to the value are those of Masson, Rim and Lee, DDSketch, VLDB 2019; taking them from the bits
of floats is HdrHistogram's way.
"""

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

ERROR = 1 / 512

_SHIFT = 15
_SIGN = np.uint32(1 << 31)


class Sketch:
    """Counts of numbers by bucket, with their least and greatest."""

    def __init__(self) -> None:
        self._counts = np.zeros(1 << (32 - _SHIFT), np.int64)
        self.least, self.greatest = np.inf, -np.inf

    def add(self, values: NDArray[np.float32]) -> None:
        """Count numbers, none of them NaN."""
        if len(values):
            buckets = (_ordered(values) >> _SHIFT).astype(np.intp)
            first = int(buckets.min())
            counts = np.bincount(buckets - first)  # of few buckets: scores lie close together
            self._counts[first : first + len(counts)] += counts
            self.least, self.greatest = min(self.least, float(values.min())), max(self.greatest, float(values.max()))

    def merge(self, other: "Sketch") -> None:
        """Count what another has counted."""
        self._counts += other._counts
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return int(self._counts.sum())

    def quantile(self, level: float) -> float:
        """Return the number that a share of `level` of the others lie below, within `ERROR` of it; NaN of none.

        The least and the greatest are exact.
        """
        if not self.count:
            return float("nan")
        rank = round(level * (self.count - 1))
        if rank in (0, self.count - 1):
            return self.greatest if rank else self.least
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank, side="right"))
        return min(max(_middle(bucket), self.least), self.greatest)

    def to_json(self) -> dict[str, Any]:
        """Return the counts that aren't 0."""
        (buckets,) = np.nonzero(self._counts)
        ends = {"least": self.least, "greatest": self.greatest} if len(buckets) else {}
        return {"buckets": buckets.tolist(), "counts": self._counts[buckets].tolist(), **ends}

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Self:
        """Return what `to_json` was said of."""
        sketch = cls()
        sketch._counts[said["buckets"]] = said["counts"]
        sketch.least, sketch.greatest = said.get("least", np.inf), said.get("greatest", -np.inf)
        return sketch


def _ordered(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Return whole numbers in the order of the floats that have these bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _middle(bucket: int) -> float:
    ordered = np.uint32((bucket << _SHIFT) | (1 << (_SHIFT - 1)))
    bits = ordered ^ _SIGN if ordered & _SIGN else ~ordered
    return float(bits.view(np.float32))
