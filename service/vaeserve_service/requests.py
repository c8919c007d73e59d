"""Requests for rows to be computed, and the batches that one call takes of them."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import DeadlineError

Arrays = dict[str, NDArray[Any]]


class Leaves(Protocol):
    """What a request waits in."""

    def leave(self, request: "Request") -> None:
        """Let it wait no longer."""
        ...


class Request(asyncio.Future[Arrays]):
    """Rows to compute, and the future of their outputs, one entry a row.

    rows: how many; cost: what each counts as, in rows; size: what they take, in bytes.
    weight: what is left of it to take, in rows; no rows at all count as one, for they take a call too.
    arrived, started, ended: when it came, when its first rows' call began and when its last one's ended, in
    `time.perf_counter`'s seconds.

    Cancelling it, as the end of the task that awaits it does, takes what isn't computed yet out of its queue at once.
    """

    def __init__(self, inputs: Arrays, *, cost: int, queue: Leaves, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.inputs = inputs
        self.rows = len(next(iter(inputs.values())))
        self.cost = cost
        self.weight = max(1, self.rows) * cost
        self.size = sum(map(_bytes_of, inputs.values()))
        self.arrived = time.perf_counter()
        self.started = 0.0
        self.ended = 0.0
        self._queue = queue
        self._taken = 0
        self._answered = 0
        self._answers: dict[int, Arrays] = {}

    @property
    def is_taken(self) -> bool:
        """Whether calls have taken all of its rows."""
        return self._taken >= self.rows

    def take(self, weight: int) -> "Piece":
        """Take rows of it that count `weight` at most, or the one that it takes at least."""
        start = self._taken
        self._taken = min(self.rows, start + max(1, weight // self.cost))
        self.weight = (self.rows - self._taken) * self.cost
        return Piece(self, start, self._taken)

    def answer(self, piece: "Piece", outputs: Arrays, *, started: float, ended: float) -> None:
        """Take a piece's outputs; the last ones answer the request."""
        if self.done():
            return
        self.started = self.started or started
        self.ended = max(self.ended, ended)
        if piece.is_whole:
            self._end(outputs)
            return
        self._answers[piece.start] = outputs
        self._answered += piece.rows
        if self._answered == self.rows:
            self._end(join([self._answers[start] for start in sorted(self._answers)]))

    def _end(self, outputs: Arrays) -> None:
        """Answer, and hold no longer what nobody reads any more: an answer may wait for its turn in a stream."""
        self.inputs = {}
        self._answers = {}
        self.set_result(outputs)

    def fail(self, error: BaseException) -> None:
        """Answer with an error; what isn't computed yet never is."""
        if not self.done():
            self._queue.leave(self)
            self.set_exception(error)

    def expire_after(self, seconds: float) -> None:
        """Answer with DeadlineError if no call has taken rows of it by then; it is never computed in that case."""
        timer = self.get_loop().call_later(seconds, self._expire, seconds)
        self.add_done_callback(lambda _: timer.cancel())

    def _expire(self, seconds: float) -> None:
        if not self._taken:
            self.fail(DeadlineError(f"timeout: {seconds * 1e6:.0f} microseconds passed in the queue; retry with more"))

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel it, unless it is answered already."""
        if not self.done():
            self._queue.leave(self)
        return super().cancel(msg)


class Piece(NamedTuple):
    """The rows of a request that one call takes."""

    request: Request
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.start

    @property
    def weight(self) -> int:
        """What its rows count."""
        return max(1, self.rows) * self.request.cost

    @property
    def is_whole(self) -> bool:
        """Whether these are all of the request's rows."""
        return self.rows == self.request.rows

    @property
    def inputs(self) -> Arrays:
        """Its rows."""
        if self.is_whole:
            return self.request.inputs
        return {name: array[self.start : self.stop] for name, array in self.request.inputs.items()}


@dataclass(slots=True, eq=False)
class Batch:
    """What one call computes.

    is_short: whether it had room for more rows; failed: whether its requests were answered with an error.
    started, ended: when the call did, in `time.perf_counter`'s seconds.
    """

    pieces: list[Piece]
    is_short: bool = False
    failed: bool = False
    started: float = 0.0
    ended: float = 0.0

    @property
    def rows(self) -> int:
        """How many rows."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def inputs(self) -> Arrays:
        """The rows of all pieces."""
        return join([piece.inputs for piece in self.pieces])

    def answer(self, outputs: Arrays) -> None:
        """Give each piece's request its rows of the outputs."""
        for piece, part in zip(self.pieces, self._split(outputs), strict=True):
            try:
                piece.request.answer(piece, part, started=self.started, ended=self.ended)
            except Exception as error:  # no memory to put it together: its caller alone must hear of it
                piece.request.fail(error)

    def fail(self, error: BaseException) -> None:
        """Give each piece's request the error."""
        self.failed = True
        for piece in self.pieces:
            piece.request.fail(error)

    def _split(self, outputs: Arrays) -> Iterator[Arrays]:
        if len(self.pieces) == 1:
            yield outputs
            return
        start = 0
        for piece in self.pieces:
            stop = start + piece.rows
            yield {name: array[start:stop] for name, array in outputs.items()}
            start = stop


def join(parts: list[Arrays]) -> Arrays:
    """Return the rows of all parts, in their order."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _bytes_of(array: NDArray[Any]) -> int:
    """Return how much memory an array takes; of strings that lie elsewhere, with what they hold."""
    # str's own method, for sys.getsizeof asks the collector too and takes four times as long.
    return array.nbytes if array.dtype != object else array.nbytes + sum(map(str.__sizeof__, array.ravel().tolist()))
