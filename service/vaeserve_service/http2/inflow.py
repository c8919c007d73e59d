"""Messages on their way in: how much of those that aren't whole yet is held in memory."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol


class Incoming(Protocol):
    """A stream that sends a message."""

    def give_back(self, size: int) -> None:
        """Let it send so many bytes more."""
        ...


@dataclass(slots=True)
class _Held:
    """Bytes of an unfinished message, and those in whose place no others may be sent yet."""

    size: int = 0
    due: int = 0


class Inflow:
    """Lets the streams of a connection send on while they hold `most_bytes` together, and past that only the oldest.

    Messages so become whole one after another. What each may send without being let on is its window.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._held: OrderedDict[Incoming, _Held] = OrderedDict()
        self._size = 0

    def hold(self, stream: Incoming, size: int) -> None:
        """Hold more of a stream's message."""
        held = self._held.setdefault(stream, _Held())
        held.size += size
        held.due += size
        self._size += size
        if self._size <= self._most or stream is next(iter(self._held)):
            self._let_on(stream, held)

    def release(self, stream: Incoming) -> None:
        """Hold nothing of a stream any more, for its message is whole or will never be."""
        held = self._held.pop(stream, None)
        if held is None:
            return
        self._size -= held.size
        for position, (waiting, held) in enumerate(self._held.items()):
            if position and self._size > self._most:
                break
            self._let_on(waiting, held)

    def _let_on(self, stream: Incoming, held: _Held) -> None:
        if held.due:
            stream.give_back(held.due)
            held.due = 0
