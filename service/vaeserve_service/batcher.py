"""Joining the rows of waiting requests into one call, and handing each request its own rows back.

Pure asyncio: what runs on the event loop is short, the calls happen on the runners' threads.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from sys import getsizeof
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import OverloadedError

Arrays = dict[str, NDArray[Any]]
K = TypeVar("K", bound=Hashable)


@dataclass(eq=False)
class _Request:
    """Rows that wait, what they count, their size in bytes, and the future that their caller awaits."""

    inputs: Arrays
    rows: int
    weight: int
    size: int
    outputs: "asyncio.Future[Arrays]"
    waits: bool = True


@dataclass(eq=False)
class _Queue:
    """The requests that may be joined, and how many of their calls are short and under way."""

    compute: Callable[[Arrays], Arrays]
    max_weight: int
    on_batch: Callable[[int], None]
    requests: deque[_Request] = field(default_factory=deque)
    waiting_weight: int = 0
    waiting_bytes: int = 0
    short_calls: int = 0

    @property
    def in_use(self) -> bool:
        """Whether a request waits here, or should wait for a short call's end."""
        return self.waiting_weight > 0 or self.short_calls > 0

    def should_start(self) -> bool:
        """Tell whether a call should start now, rather than its rows join more of them.

        A call costs much for itself and little a row, so while a short one is under way, what isn't a full batch waits
        for its end: under load one runner with joined rows does more than several with few rows each.
        """
        return self.waiting_weight > 0 and (self.short_calls == 0 or self.waiting_weight >= self.max_weight)

    def take(self) -> tuple[list[_Request], int]:
        """Take the oldest requests, as many as fit in a batch, and what they count."""
        batch: list[_Request] = []
        weight = 0
        while self.requests and (not batch or weight + self.requests[0].weight <= self.max_weight):
            request = self.requests.popleft()
            if request.waits:
                self.leave(request)
                weight += request.weight
                batch.append(request)
        return batch, weight

    def join(self, request: _Request) -> None:
        """Let a request wait."""
        self.requests.append(request)
        self.waiting_weight += request.weight
        self.waiting_bytes += request.size

    def leave(self, request: _Request) -> None:
        """Let a request wait no longer, for it is taken or its caller has gone; `take` passes over it."""
        request.waits = False
        self.waiting_weight -= request.weight
        self.waiting_bytes -= request.size


class Runners:
    """Threads that all models share; a free one takes the next queue's batch, queues in turn."""

    def __init__(self, executor: Executor, count: int) -> None:
        self._executor = executor
        self._idle = count
        self._queues: OrderedDict[_Queue, None] = OrderedDict()
        self._dispatch_is_due = False

    def wake(self, queue: _Queue) -> None:
        """Let `queue` have a runner once the loop has done what else is due: what came together leaves together."""
        self._queues.setdefault(queue)
        if not self._dispatch_is_due:
            self._dispatch_is_due = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._dispatch_is_due = False
        for unused in [queue for queue in self._queues if not queue.in_use]:
            del self._queues[unused]
        while self._idle and (queue := next(filter(_Queue.should_start, self._queues), None)):
            batch, weight = queue.take()
            self._queues.move_to_end(queue)
            self._idle -= 1
            queue.short_calls += weight < queue.max_weight
            queue.on_batch(sum(request.rows for request in batch))
            self._executor.submit(self._run, queue, batch, weight, asyncio.get_running_loop())

    def _run(self, queue: _Queue, batch: list[_Request], weight: int, loop: asyncio.AbstractEventLoop) -> None:
        """Compute a batch, on a runner's thread, and bring it back to the loop by one call."""
        results: list[Arrays] | BaseException
        try:
            results = list(_split(queue.compute(_join(batch)), batch))
        except BaseException as error:  # whatever it is, the callers must hear of it
            results = error
        loop.call_soon_threadsafe(partial(self._finish, queue, batch, weight, results))

    def _finish(self, queue: _Queue, batch: list[_Request], weight: int, results: list[Arrays] | BaseException) -> None:
        """Give the runner its next batch, then each request its rows, or all of them the error."""
        self._idle += 1
        queue.short_calls -= weight < queue.max_weight
        self._dispatch()
        for position, request in enumerate(batch):
            if request.outputs.done():
                continue
            if isinstance(results, BaseException):
                request.outputs.set_exception(results)
            else:
                request.outputs.set_result(results[position])


class Batcher(Generic[K]):
    """A model's queues: `compute` takes a key and joined inputs and returns outputs, one entry a row.

    Requests of one key are joined, oldest first, up to `max_rows`; a larger request is a batch by itself. At most
    `queue_rows` of `queue_bytes` wait. Each request owns its future: one that is cancelled leaves the queue at once,
    never computed.
    """

    def __init__(
        self,
        compute: Callable[[K, Arrays], Arrays],
        *,
        runners: Runners,
        max_rows: int,
        queue_rows: int,
        queue_bytes: int,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._compute = compute
        self._runners = runners
        self._max_rows = max_rows
        self._queue_rows = queue_rows
        self._queue_bytes = queue_bytes
        self._on_batch = on_batch
        self._queues: dict[K, _Queue] = {}

    @property
    def waiting_rows(self) -> int:
        """How many rows wait for a runner."""
        return sum(queue.waiting_weight for queue in tuple(self._queues.values()))  # another thread may ask

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of rows wait for a runner."""
        return sum(queue.waiting_bytes for queue in self._queues.values())

    async def submit(self, key: K, inputs: Arrays, *, cost: int = 1) -> Arrays:
        """Return the outputs for the rows of `inputs`, each of which counts as `cost` rows.

        Raises OverloadedError at once if the queue has no room for them.
        """
        rows = len(next(iter(inputs.values())))
        weight, size = max(1, rows) * cost, sum(map(_bytes_of, inputs.values()))
        self._refuse_past("rows", self.waiting_rows, weight, self._queue_rows)
        self._refuse_past("bytes", self.waiting_bytes, size, self._queue_bytes)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(partial(self._compute, key), self._max_rows, self._on_batch)
        request = _Request(inputs, rows, weight, size, asyncio.get_running_loop().create_future())
        queue.join(request)
        self._runners.wake(queue)
        try:
            return await request.outputs
        finally:
            if request.waits:  # the caller has gone
                queue.leave(request)
            if not queue.in_use and self._queues.get(key) is queue:
                del self._queues[key]

    @staticmethod
    def _refuse_past(unit: str, waiting: int, more: int, limit: int) -> None:
        # An empty queue takes a request of any size, or the largest could never run.
        if waiting and waiting + more > limit:
            raise OverloadedError(f"queue: {waiting} {unit} wait, and {more} more exceed {limit}; retry later")


def _bytes_of(array: NDArray[Any]) -> int:
    """Return how much memory an array takes; of strings that lie elsewhere, with what they hold."""
    return array.nbytes if array.dtype != object else array.nbytes + sum(map(getsizeof, array.flat))


def _join(batch: list[_Request]) -> Arrays:
    if len(batch) == 1:
        return batch[0].inputs
    return {name: np.concatenate([request.inputs[name] for request in batch]) for name in batch[0].inputs}


def _split(outputs: Arrays, batch: list[_Request]) -> Iterator[Arrays]:
    start = 0
    for request in batch:
        rows = slice(start, start + request.rows)
        start += request.rows
        yield {name: array[rows] for name, array in outputs.items()}
