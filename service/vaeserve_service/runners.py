"""Threads that compute the batches of all models."""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import NamedTuple, Self

import structlog

from vaeserve_service.daemon import DaemonThread
from vaeserve_service.queues import Queue
from vaeserve_service.requests import Arrays, Batch

log = structlog.get_logger()

# A call is a matter of milliseconds; one that hangs, as on a GPU that is lost, must not keep the process.
_STOP_S = 2.0


class Runners:
    """So many threads; a free one takes the next queue's batch, queues in turn.

    Leaving waits a moment for the calls under way, whose callers have gone.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._runners = [_Runner(f"runner-{number}", self._finish) for number in range(count)]
        # The last one that became idle is the next to work: its processor's caches still hold the model.
        self._idle = list(self._runners)
        self._queues: OrderedDict[Queue, None] = OrderedDict()  # those in which requests wait
        self._loop: asyncio.AbstractEventLoop | None = None
        self._dispatch_is_due = False
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        for runner in self._runners:
            runner.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for runner in self._runners:
            runner.stop()
        deadline = time.monotonic() + _STOP_S
        for runner in self._runners:
            runner.join(max(0.0, deadline - time.monotonic()))
            if runner.is_alive():
                log.warning("left computing", thread=runner.name)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that they work for: the one that runs when it is first asked for."""
        if self._loop is None:  # to ask costs a system call
            self._loop = asyncio.get_running_loop()
        return self._loop

    def wake(self, queue: Queue) -> None:
        """Let `queue` have a runner once the loop has done what else is due: what came together leaves together."""
        self._queues.setdefault(queue)
        if not self._dispatch_is_due:
            self._dispatch_is_due = True
            self.loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Start the calls that are due, as long as there are threads for them."""
        self._dispatch_is_due = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle and (queue := self._next()) is not None:
            self._idle.pop().compute(queue, queue.take(), self.loop)
            self._queues.move_to_end(queue)

    def _next(self) -> Queue | None:
        """Return the queue whose turn it is; if a call is due in none yet, see to it that this is asked again."""
        empty: list[Queue] = []
        due, soonest = None, math.inf
        for queue in self._queues:
            delay = queue.delay()
            if delay == 0:
                due = queue
                break
            if not queue.waits:
                empty.append(queue)
            soonest = min(soonest, delay)
        for queue in empty:
            del self._queues[queue]
        if due is None and soonest < math.inf:
            self._timer = self.loop.call_later(soonest, self._dispatch)
        return due

    def _finish(self, runner: "_Runner", queue: Queue, batch: Batch, outputs: Arrays | BaseException) -> None:
        """Give the requests what came of theirs, and the thread its next batch."""
        self._idle.append(runner)
        queue.ended(batch)
        if isinstance(outputs, BaseException):
            batch.fail(outputs)  # first, for what is left of its requests is not to be computed
            self._dispatch()
        else:
            self._dispatch()
            batch.answer(outputs)
        queue.on_batch(batch)


class _Work(NamedTuple):
    """A batch to compute, the queue that it is of, and the loop that waits for it."""

    queue: Queue
    batch: Batch
    loop: asyncio.AbstractEventLoop


class _Runner(DaemonThread):
    """A thread that computes batches, and tells the loop by `on_computed` what came of each."""

    def __init__(
        self, name: str, on_computed: "Callable[[_Runner, Queue, Batch, Arrays | BaseException], None]"
    ) -> None:
        super().__init__(name)
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._on_computed = on_computed

    def compute(self, queue: Queue, batch: Batch, loop: asyncio.AbstractEventLoop) -> None:
        """Have a batch computed."""
        self._work.put(_Work(queue, batch, loop))

    def stop(self) -> None:
        """End once what it has to do is done."""
        self._work.put(None)

    def run(self) -> None:
        """Compute until it is stopped."""
        while self._compute_next():
            pass

    def _compute_next(self) -> bool:
        """Compute a batch; what it holds goes with it, so that an idle thread keeps no model alive."""
        work = self._work.get()
        if work is None:
            return False
        queue, batch, loop = work
        outputs: Arrays | BaseException
        batch.started = time.perf_counter()
        try:
            outputs = queue.compute(batch.inputs)
        except BaseException as error:  # whatever it is, the callers must hear of it
            outputs = error
        batch.ended = time.perf_counter()
        loop.call_soon_threadsafe(self._on_computed, self, queue, batch, outputs)
        return True
