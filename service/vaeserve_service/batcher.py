"""Joining the rows of waiting requests into one call, and handing each request its own rows back.

Pure asyncio: what runs on the event loop is short, the calls happen on the runners' threads.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from vaeserve.errors import OverloadedError
from vaeserve_service.queues import Backlog, Queue
from vaeserve_service.requests import Arrays, Batch, Request
from vaeserve_service.runners import Runners

K = TypeVar("K", bound=Hashable)

# Idle queues that are kept at least, for what they know of their callers.
_KEPT = 32


class Batcher(Generic[K]):
    """A model's queues: `compute` takes a key and joined inputs and returns outputs, one entry a row.

    Requests of one key are joined, oldest first, up to `max_rows`; a larger one is computed in pieces, in turns with
    the others. Under load a call waits `max_delay_s` at most for requests to join it. At most `queue_rows` of
    `queue_bytes` wait.
    """

    def __init__(
        self,
        compute: Callable[[K, Arrays], Arrays],
        *,
        runners: Runners,
        max_rows: int,
        max_delay_s: float,
        queue_rows: int,
        queue_bytes: int,
        on_batch: Callable[[K, Batch], None] = lambda *_: None,
    ) -> None:
        self._compute = compute
        self._runners = runners
        self._max_rows = max_rows
        self._max_delay_s = max_delay_s
        self._queue_rows = queue_rows
        self._queue_bytes = queue_bytes
        self._on_batch = on_batch
        self._backlog = Backlog()
        self._queues: dict[K, Queue] = {}
        self._most_queues = _KEPT

    @property
    def waiting_rows(self) -> int:
        """How many rows wait for a runner."""
        return self._backlog.rows

    @property
    def waiting_bytes(self) -> int:
        """How many bytes of rows wait for a runner."""
        return self._backlog.bytes

    def submit(self, key: K, inputs: Arrays, *, cost: int = 1) -> Request:
        """Have the rows of `inputs` computed, each of which counts as `cost` rows; await the request for the outputs.

        A request owns its future: cancelled, it leaves the queue at once, and what is left of it is never computed.
        Raises OverloadedError at once if the queue has no room for it.
        """
        queue = self._queue(key)
        request = Request(inputs, cost=cost, queue=queue, loop=self._runners.loop)
        _refuse_past("rows", self._backlog.rows, request.weight, self._queue_rows)
        _refuse_past("bytes", self._backlog.bytes, request.size, self._queue_bytes)
        queue.join(request)
        self._runners.wake(queue)
        return request

    def _queue(self, key: K) -> Queue:
        queue = self._queues.get(key)
        if queue is None:
            # Keys are many where each call brings a seed of its own.
            if len(self._queues) >= self._most_queues:
                self._queues = {known: queue for known, queue in self._queues.items() if queue.in_use}
                self._most_queues = max(_KEPT, 2 * len(self._queues))
            queue = self._queues[key] = Queue(
                partial(self._compute, key),
                max_rows=self._max_rows,
                max_delay_s=self._max_delay_s,
                backlog=self._backlog,
                on_batch=partial(self._on_batch, key),
            )
        return queue


def _refuse_past(unit: str, waiting: int, more: int, limit: int) -> None:
    # An empty queue takes a request of any size, or the largest could never run.
    if waiting and waiting + more > limit:
        raise OverloadedError(f"queue: {waiting} {unit} wait, and {more} more exceed {limit}; retry later")
