"""What the other end may do that costs us and brings nobody anything."""

import time


class Budget:
    """So many at once, and so many more a second."""

    def __init__(self, most: int, *, per_second: float) -> None:
        self._most = most
        self._per_second = per_second
        self._left = float(most)
        self._counted = time.monotonic()

    def spend(self) -> bool:
        """Count one; tell whether it was still to be had."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._counted) * self._per_second)
        self._counted = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def earn(self) -> None:
        """Allow one more, for what has been done that was worth it."""
        self._left = min(self._most, self._left + 1)
