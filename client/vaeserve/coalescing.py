"""Calls of few rows, made at once, that are joined into one: each caller has its own rows, error and deadline.

A caller alone is never kept waiting: its call is sent at once, and those that come while it is under way are gathered,
until it is back or the oldest has waited long enough. Nobody else does the work: of the callers that are joined, the
one with the most time carries the call, and the others wait for it.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np

from vaeserve.calls import Deadline
from vaeserve.errors import CallerError, VaeserveError
from vaeserve.parts import Arrays, byte_count, row_count, take
from vaeserve.transport import Signal, Transport

R = TypeVar("R")

# Makes a call with some rows, within a deadline.
Send = Callable[[Arrays, Deadline], Awaitable[R]]

# More rows make a call no cheaper a row.
MOST_ROWS = 256
MOST_BYTES = 2**20
# A call of more shares what a call costs among its own.
FEW_ROWS = 16

_WAITING: Any = object()
_ALONE: Any = object()


@dataclass(slots=True, eq=False)
class _Caller(Generic[R]):
    inputs: Arrays
    rows: int
    size: int
    deadline: Deadline
    signal: Signal
    carries: "_Batch[R] | None" = None
    outcome: Any = _WAITING


@dataclass(slots=True, eq=False)
class _Batch(Generic[R]):
    """Callers whose rows make one call."""

    callers: list[_Caller[R]] = field(default_factory=list)
    rows: int = 0
    size: int = 0

    def add(self, caller: _Caller[R]) -> None:
        self.callers.append(caller)
        self.rows += caller.rows
        self.size += caller.size

    def drop(self, caller: _Caller[R]) -> None:
        self.callers.remove(caller)
        self.rows -= caller.rows
        self.size -= caller.size


@dataclass(slots=True, eq=False)
class _Lane(Generic[R]):
    """Calls that can be joined: how many are under way, and who waits for the next."""

    under_way: int = 0
    gathered: _Batch[R] | None = None


class Coalescer(Generic[R]):
    """Joins calls by their keys.

    wait_s: how long a caller waits to be joined, at most.
    """

    def __init__(self, transport: Transport, *, target: str, wait_s: float) -> None:
        self._transport = transport
        self._target = target
        self._wait_s = wait_s
        self._lanes: dict[Hashable, _Lane[R]] = {}

    def takes(self, inputs: Arrays) -> bool:
        """Tell whether rows are so few that they are joined with others."""
        return self._wait_s > 0 and 0 < row_count(inputs) <= FEW_ROWS and byte_count(inputs) <= MOST_BYTES

    async def call(self, key: Hashable, inputs: Arrays, send: Send[R], deadline: Deadline) -> R:
        """Return what `send` gives for these rows, sent by itself or with those of other calls of this key.

        Raises what `send` does for these rows, and at the deadline.
        """
        signal = self._transport.signal()
        caller: _Caller[R] = _Caller(inputs, row_count(inputs), byte_count(inputs), deadline, signal)
        try:
            batch = self._join(key, caller)
            if batch is not None:
                await self._gathered(key, caller, batch)
            if caller.carries is not None:
                await self._carry(key, caller, send)
        except BaseException:
            self._leave(key, caller)
            raise
        if caller.outcome is _ALONE:
            return await send(inputs, deadline)
        if isinstance(caller.outcome, BaseException):
            raise caller.outcome
        result: R = caller.outcome
        return result

    def _join(self, key: Hashable, caller: _Caller[R]) -> _Batch[R] | None:
        """Return the batch that the caller waits in; None where it is to carry its own."""
        with self._transport.lock:
            lane = self._lanes.setdefault(key, _Lane())
            if not lane.under_way:
                lane.under_way = 1
                caller.carries = _Batch([caller], caller.rows, caller.size)
                return None
            gathered = lane.gathered
            if gathered and (gathered.rows + caller.rows > MOST_ROWS or gathered.size + caller.size > MOST_BYTES):
                self._appoint(lane)
            if lane.gathered is None:
                lane.gathered = _Batch()
            lane.gathered.add(caller)
            return lane.gathered

    async def _gathered(self, key: Hashable, caller: _Caller[R], batch: _Batch[R]) -> None:
        """Wait for the answer, or for the call to carry; raises at the deadline."""
        deadline = caller.deadline
        # Whoever came first sees to it that the call goes out.
        if batch.callers[0] is caller and not await caller.signal.wait(min(self._wait_s, deadline.remaining)):
            with self._transport.lock:
                lane = self._lanes.get(key)
                if lane is not None and lane.gathered is batch and deadline.remaining:
                    self._appoint(lane)
        if not await caller.signal.wait(deadline.remaining) and caller.outcome is _WAITING and not caller.carries:
            why = next((other.deadline.why for other in batch.callers if other.deadline.why), None)
            raise Deadline(deadline.at, deadline.seconds, why).missed(self._target)

    def _appoint(self, lane: _Lane[R]) -> None:
        """Have what was gathered carried by the caller that has the most time, so that nobody's ends before it."""
        batch, lane.gathered = lane.gathered, None
        if batch is not None and batch.callers:
            lane.under_way += 1
            self._hand(batch)

    def _hand(self, batch: _Batch[R]) -> None:
        carrier = max(batch.callers, key=lambda caller: caller.deadline.at)
        carrier.carries = batch
        carrier.signal.set()

    def _leave(self, key: Hashable, caller: _Caller[R]) -> None:
        """Take a caller that has gone out of what isn't sent yet; another takes on what it was to do."""
        with self._transport.lock:
            lane = self._lanes.get(key)
            if lane is None:
                return
            if (batch := caller.carries) is not None:
                caller.carries = None
                batch.drop(caller)
                if batch.callers:
                    self._hand(batch)
                else:
                    self._back(key, lane)
            elif lane.gathered is not None and caller in lane.gathered.callers:
                first = lane.gathered.callers[0] is caller
                lane.gathered.drop(caller)
                if first:
                    self._appoint(lane)

    async def _carry(self, key: Hashable, caller: _Caller[R], send: Send[R]) -> None:
        batch, caller.carries = caller.carries, None
        assert batch is not None  # noqa: S101 - for mypy
        sending = self._send(key, batch, caller.deadline, send)
        # One that carries others' rows may leave, but their call goes on.
        await (sending if len(batch.callers) == 1 else self._transport.shield(sending))

    async def _send(self, key: Hashable, batch: _Batch[R], deadline: Deadline, send: Send[R]) -> None:
        outcomes: Sequence[Any] = [_ALONE] * len(batch.callers)
        try:
            outcomes = _shared(await send(_joined(batch.callers), deadline), batch.callers)
        except VaeserveError as error:
            outcomes = _blamed(error, len(batch.callers))
        finally:
            with self._transport.lock:
                for caller, outcome in zip(batch.callers, outcomes, strict=True):
                    caller.outcome = outcome
                    caller.signal.set()
                self._back(key, self._lanes[key])

    def _back(self, key: Hashable, lane: _Lane[R]) -> None:
        lane.under_way -= 1
        self._appoint(lane)
        if not lane.under_way:
            del self._lanes[key]


def _joined(callers: Sequence[_Caller[Any]]) -> Arrays:
    if len(callers) == 1:
        return callers[0].inputs
    names = callers[0].inputs
    return {name: np.concatenate([caller.inputs[name] for caller in callers]) for name in names}


def _shared(result: R, callers: Sequence[_Caller[R]]) -> list[R]:
    """Return each caller's part of a result."""
    if len(callers) == 1:
        return [result]
    parts, start = [], 0
    for caller in callers:
        parts.append(take(result, slice(start, start + caller.rows)))
        start += caller.rows
    return parts


def _blamed(error: VaeserveError, callers: int) -> list[Any]:
    """Return what each caller of a failed call gets: its own error, or the word to find out alone whose fault it is."""
    if callers == 1:
        return [error]
    if isinstance(error, CallerError):
        return [_ALONE] * callers
    copies = [type(error)(str(error)) for _ in range(callers)]
    for copy in copies:
        copy.__cause__ = error.__cause__
    return copies
