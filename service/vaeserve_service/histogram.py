"""A histogram that is cheap to add to: prometheus_client's takes a lock, and looks at every bucket in turn."""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate


class Histogram:
    """Counts of values by bucket, of which each holds those up to its bound, and their sum.

    One thread at a time adds; any may read, and sees counts that agree with each other.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_counted(self, counts: Iterable[int], total: float) -> None:
        """Count values by bucket, the last that of what is past all bounds, and add their `total`."""
        self._counts = [old + new for old, new in zip(self._counts, counts, strict=True)]
        self._sum += total

    @property
    def buckets(self) -> list[tuple[str, float]]:
        """How many values there are up to each bound, as Prometheus has it."""
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(names, accumulate(list(self._counts)), strict=True))

    @property
    def sum(self) -> float:
        """The sum of the values."""
        return self._sum
