"""Requests that may be joined, and when a call of them should start."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from vaeserve_service.requests import Arrays, Batch, Piece, Request

# The share of a crowd that a call waits for: the last few would hold up all the others.
_SHARE = 0.9
# What is left of a crowd from one call to the next, where fewer come.
_DECAY = 0.9
# The seconds that a crowd is remembered while nobody comes.
_LATELY_S = 0.1
# The event loop's timers count milliseconds: what is due sooner than it can tell is due.
_TICK_S = 0.0005


@dataclass
class Backlog:
    """What waits in all queues of a model."""

    rows: int = 0
    bytes: int = 0


class Queue:
    """Requests of one model and operation, oldest first, a large one in turns with the others.

    A call costs much for itself and little a row, so under load it waits, at most `max_delay_s`, for as many requests
    as were lately in flight at once, its crowd. One alone is its own crowd and never waits.
    """

    def __init__(
        self,
        compute: Callable[[Arrays], Arrays],
        *,
        max_rows: int,
        max_delay_s: float,
        backlog: Backlog,
        on_batch: Callable[[Batch], None],
    ) -> None:
        self.compute = compute
        self.on_batch = on_batch
        self._max_rows = max_rows
        self._max_delay_s = max_delay_s
        self._backlog = backlog
        self._requests: OrderedDict[Request, None] = OrderedDict()
        self._rows = 0
        self._calls = 0
        self._short_calls = 0
        self._computing = 0
        self._crowd = 1.0
        self._ended = -math.inf

    @property
    def waits(self) -> bool:
        """Whether a request waits here."""
        return bool(self._requests)

    @property
    def in_use(self) -> bool:
        """Whether a request waits here or is computed."""
        return bool(self._requests) or self._calls > 0

    def join(self, request: Request) -> None:
        """Let a request wait."""
        if not self.in_use and request.arrived - self._ended > _LATELY_S:
            self._crowd = 1.0
        self._requests[request] = None
        self._count(request.weight, request.size)

    def leave(self, request: Request) -> None:
        """Let a request wait no longer, if it does."""
        if request in self._requests:
            del self._requests[request]
            self._count(-request.weight, -request.size)

    def delay(self) -> float:
        """Return in how many seconds a call should start: 0 for now, infinity where something else will tell.

        While a call of few rows is under way its end is waited for, unless the next is full: one runner with joined
        rows does more than several with few rows each.
        """
        if not self._requests:
            return math.inf
        if self._rows >= self._max_rows:
            return 0.0
        if self._short_calls:
            return math.inf
        if self._has_crowd:
            return 0.0
        oldest = next(iter(self._requests))
        remaining = oldest.arrived + self._max_delay_s - time.perf_counter()
        return remaining if remaining > _TICK_S else 0.0

    def take(self) -> Batch:
        """Take the oldest rows, as many as a call takes, or the one row that counts for more than that.

        A request that doesn't fit gives a piece, if it is larger than any call, and else waits for the next one.
        """
        self._learn()
        pieces: list[Piece] = []
        room = self._max_rows
        while self._requests and room > 0:
            request = next(iter(self._requests))
            weight = request.weight
            if pieces and weight > room and (weight <= self._max_rows or request.cost > room):
                break
            piece = request.take(room)
            pieces.append(piece)
            room -= piece.weight
            self._count(-piece.weight, 0)
            if request.is_taken:
                del self._requests[request]
                self._count(0, -request.size)
            else:
                self._requests.move_to_end(request)
        self._calls += 1
        self._short_calls += room > 0
        self._computing += len(pieces)
        return Batch(pieces, is_short=room > 0)

    def ended(self, batch: Batch) -> None:
        """Count a call as done."""
        self._calls -= 1
        self._short_calls -= batch.is_short
        self._computing -= len(batch.pieces)
        self._ended = batch.ended

    @property
    def _has_crowd(self) -> bool:
        return len(self._requests) >= _SHARE * self._crowd

    def _learn(self) -> None:
        """Learn the crowd from those in flight; where those that it waited for didn't come, it is no more."""
        in_flight = len(self._requests) + self._computing
        came = self._has_crowd or self._rows >= self._max_rows
        self._crowd = max(in_flight, _DECAY * self._crowd) if came else in_flight

    def _count(self, rows: int, size: int) -> None:
        self._rows += rows
        self._backlog.rows += rows
        self._backlog.bytes += size
