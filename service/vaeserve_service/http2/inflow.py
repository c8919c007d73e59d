"""How much of a connection's messages on their way in is held in memory."""

from collections import OrderedDict
from typing import Protocol


class Incoming(Protocol):
    """A stream that sends a message larger than its window."""

    def let_on(self, size: int) -> None:
        """Let it send so many bytes more."""
        ...


class Inflow:
    """Lets streams send on, past their windows, while that is `most_bytes` together at most; past it the oldest alone.

    Messages so become whole one after another. A connection holds no more than all its streams' windows, this, and a
    message. What a stream was let on for counts until it is settled: its message is taken, or never will be.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._let: OrderedDict[Incoming, int] = OrderedDict()  # how much each was, 0 for those that wait
        self._asked: dict[Incoming, int] = {}  # how much those that wait asked for
        self._size = 0

    def ask(self, stream: Incoming, size: int) -> None:
        """Let a stream send so many bytes more, now or once there is room."""
        self._let.setdefault(stream, 0)
        self._asked[stream] = size
        self._let_on()

    def settle(self, stream: Incoming) -> None:
        """Count nothing of a stream any more."""
        if stream in self._let:
            self._size -= self._let.pop(stream)
            self._asked.pop(stream, None)
            self._let_on()

    def _let_on(self) -> None:
        for position, stream in enumerate(self._let):
            if not self._asked or (position and self._size >= self._most):
                return
            size = self._asked.pop(stream, 0)
            if size:
                self._let[stream] += size
                self._size += size
                stream.let_on(size)
