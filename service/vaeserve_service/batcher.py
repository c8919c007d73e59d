"""Joining the rows of waiting requests into one call, and handing each request its own rows back.

Pure asyncio: whatever runs on the event loop is short, the call itself happens on an executor's thread.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import OverloadedError

Arrays = dict[str, NDArray[Any]]
K = TypeVar("K", bound=Hashable)


@dataclass(eq=False)
class _Request:
    inputs: Arrays
    rows: int
    outputs: "asyncio.Future[Arrays]"


class Batcher(Generic[K]):
    """A queue in front of `compute`, which takes a key and joined inputs and returns outputs, one entry a row.

    Requests of one key are joined, oldest first, up to `max_rows`, as soon as a runner is free; a larger request is a
    batch by itself. A request owns its future: one that was cancelled is dropped before the call.
    """

    def __init__(
        self,
        compute: Callable[[K, Arrays], Arrays],
        *,
        executor: Executor,
        runners: int,
        max_rows: int,
        queue_rows: int,
        on_batch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._compute = compute
        self._executor = executor
        self._idle_runners = runners
        self._max_rows = max_rows
        self._queue_rows = queue_rows
        self._on_batch = on_batch
        self._waiting: OrderedDict[K, deque[_Request]] = OrderedDict()
        self._waiting_rows = 0
        self._dispatch_is_due = False

    @property
    def waiting_rows(self) -> int:
        """How many rows wait for a runner."""
        return self._waiting_rows

    async def submit(self, key: K, inputs: Arrays) -> Arrays:
        """Return the outputs for the rows of `inputs`.

        Raises OverloadedError at once if the queue has no room for them.
        """
        rows = len(next(iter(inputs.values())))
        # An empty queue takes a request of any size, or the largest could never run.
        if self._waiting_rows and self._waiting_rows + rows > self._queue_rows:
            raise OverloadedError(
                f"queue: {self._waiting_rows} rows wait, and {rows} more exceed {self._queue_rows}; retry later"
            )
        loop = asyncio.get_running_loop()
        request = _Request(inputs, rows, loop.create_future())
        self._waiting.setdefault(key, deque()).append(request)
        self._waiting_rows += rows
        if not self._dispatch_is_due:
            # After what else the loop has to do now: requests that came together leave together.
            self._dispatch_is_due = True
            loop.call_soon(self._dispatch)
        return await request.outputs

    def _dispatch(self) -> None:
        self._dispatch_is_due = False
        while self._idle_runners and self._waiting:
            key, batch = self._take()
            if not batch:
                continue
            self._idle_runners -= 1
            self._on_batch(sum(request.rows for request in batch))
            call = asyncio.get_running_loop().run_in_executor(self._executor, self._run, key, batch)
            call.add_done_callback(partial(self._finish, batch))

    def _take(self) -> tuple[K, list[_Request]]:
        """Take the next key's oldest requests, as many as fit in a batch, and leave out the cancelled ones."""
        key, queue = next(iter(self._waiting.items()))
        batch: list[_Request] = []
        rows = 0
        while queue and (not batch or rows + queue[0].rows <= self._max_rows):
            request = queue.popleft()
            self._waiting_rows -= request.rows
            if not request.outputs.done():
                batch.append(request)
                rows += request.rows
        # Keys take turns.
        if queue:
            self._waiting.move_to_end(key)
        else:
            del self._waiting[key]
        return key, batch

    def _run(self, key: K, batch: list[_Request]) -> Arrays:
        """Compute a batch, on a runner's thread."""
        if len(batch) == 1:
            return self._compute(key, batch[0].inputs)
        names = batch[0].inputs
        joined = {name: np.concatenate([request.inputs[name] for request in batch]) for name in names}
        return self._compute(key, joined)

    def _finish(self, batch: list[_Request], call: "asyncio.Future[Arrays]") -> None:
        """Hand each request its rows, or all of them the error."""
        self._idle_runners += 1
        error = None if call.cancelled() else call.exception()
        start = 0
        for request in batch:
            rows = slice(start, start + request.rows)
            start += request.rows
            if request.outputs.done():
                continue
            if call.cancelled():
                request.outputs.cancel()
            elif error is not None:
                request.outputs.set_exception(error)
            else:
                request.outputs.set_result({name: array[rows] for name, array in call.result().items()})
        self._dispatch()
