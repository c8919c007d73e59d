"""Data on its way out, as far as the other end, by its windows, and the socket take it.

Source: RFC 9113, section 5.2.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable

from vaeserve_service.http2.frames import (
    DATA,
    DEFAULT_WINDOW,
    LARGEST_FRAME,
    LARGEST_WINDOW,
    Code,
    Http2Error,
    data_frames,
    frame,
)

# Bytes of a stream that wait to be sent, past which whoever makes more of them waits too.
_ROOM = 65_536
# Bytes that must have been sent for each update of a window that they may be answered with. A message counts as two
# updates at least, as does the end of a call: of its stream's window, and of the connection's.
_UPDATE_BYTES = 256
_LEAST_BYTES = 2 * _UPDATE_BYTES


class Outgoing(ABC):
    """A stream's data that waits, and how much of it the stream's window lets through."""

    def __init__(self, number: int, *, window: int) -> None:
        self.number = number
        self.window = window
        self.waiting = bytearray()
        self._room: asyncio.Future[None] | None = None

    @abstractmethod
    def emptied(self) -> None:
        """Hear that nothing waits any more."""

    @property
    def is_full(self) -> bool:
        """Whether so much waits that more should not be made yet."""
        return len(self.waiting) >= _ROOM

    async def until_room(self) -> None:
        """Wait until more may be made."""
        while self.is_full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def take(self, size: int) -> bytes:
        """Take so many bytes of what waits."""
        taken = bytes(self.waiting[:size])
        del self.waiting[:size]
        self.window -= size
        if self._room is not None and not self._room.done() and not self.is_full:
            self._room.set_result(None)
        return taken


class Outflow:
    """Sends the streams' data; those that must wait have turns."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._window = DEFAULT_WINDOW
        self._paused = False
        self._turns: OrderedDict[Outgoing, None] = OrderedDict()  # those that wait, and whose own windows are open
        self._unanswered = 0

    def send(self, out: Outgoing, content: bytes) -> None:
        """Send a stream's data, or let it wait for its turn."""
        size = len(content)
        if size <= out.window and size <= self._window and not out.waiting and not self._paused:
            out.window -= size
            self._window -= size
            self._unanswered += max(size, _LEAST_BYTES)
            self._write(data_frames(out.number, content))
            return
        out.waiting += content
        self._give_turn(out)

    def widen(self, size: int, out: Outgoing | None = None) -> None:
        """Take how much more the other end can take, of a stream or in all; raises Http2Error for too much."""
        window = size + (self._window if out is None else out.window)
        if window > LARGEST_WINDOW:
            raise Http2Error(Code.FLOW_CONTROL_ERROR, f"window of {window} bytes; expected {LARGEST_WINDOW} at most")
        if out is None:
            self._window = window
            self._pump()
        else:
            out.window = window
            self._give_turn(out)

    def owe_updates(self) -> None:
        """Count the end of a call, which may be answered with updates though no data was sent."""
        self._unanswered += _LEAST_BYTES

    def owes_update(self) -> bool:
        """Count a window's update; tell whether it is one that data which was sent may be answered with."""
        self._unanswered -= _UPDATE_BYTES
        if self._unanswered >= 0:
            return True
        self._unanswered = 0
        return False

    def pause(self) -> None:
        """Send nothing for now: the socket can't take it."""
        self._paused = True

    def resume(self) -> None:
        """Send on."""
        self._paused = False
        self._pump()

    def forget(self, out: Outgoing) -> None:
        """Send no more of a stream."""
        self._turns.pop(out, None)

    def _give_turn(self, out: Outgoing) -> None:
        """Let a stream have turns as long as its window is open, which the other end may also shut again."""
        if out.waiting and out.window > 0:
            self._turns.setdefault(out)
            self._pump()
        else:
            self._turns.pop(out, None)

    def _pump(self) -> None:
        """Send a frame of each stream in turn, as long as there is one that may send and something lets it."""
        while self._turns and self._window > 0 and not self._paused:
            out = next(iter(self._turns))
            size = min(LARGEST_FRAME, self._window, out.window, len(out.waiting))
            self._window -= size
            self._unanswered += size
            self._write(frame(DATA, out.take(size), stream=out.number))
            if out.waiting and out.window > 0:
                self._turns.move_to_end(out)
                continue
            del self._turns[out]
            if not out.waiting:
                self._unanswered += _LEAST_BYTES
                out.emptied()
