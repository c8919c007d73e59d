"""Who runs shards: the processors of this machine, one shard after another and all of them at each.

Reading, computing and writing overlap: one thread reads ahead, the workers run ONNX Runtime, which holds no lock of
Python's, and the caller's thread writes what they made, in order.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from vaeserve.errors import DataError
from vaeserve_jobs.job import Computed, Job, Skipped, batch_rows
from vaeserve_jobs.model import Model
from vaeserve_jobs.plan import Plan
from vaeserve_jobs.tally import Tally

# A batch as it is read, as the model takes it and as what comes of it, beside what a session works with.
COPIES = 4
# How often who waits looks whether it is to stop, seconds.
POLL_S = 0.2

T = TypeVar("T")
R = TypeVar("R")


class StoppedError(Exception):
    """A job was told to stop; what is done is done, and it can be resumed."""


class Stop(Protocol):
    """What tells a job to stop, as `threading.Event` does."""

    def is_set(self) -> bool:
        """Tell whether it is to."""
        ...


class Watch(Protocol):
    """Who is told how a job comes on."""

    def begin(self, plan: Plan, shards: Sequence[int]) -> None:
        """Take that these of a plan's shards are to be run."""
        ...

    def rows(self, count: int) -> None:
        """Take that so many rows were computed."""
        ...

    def shard(self, shard: int, tally: Tally) -> None:
        """Take that a shard is done."""
        ...


class Engine(Protocol):
    """Runs shards of a job, each to its part, in any order."""

    def run(self, job: Job, shards: Sequence[int], *, watch: Watch, stop: Stop) -> None:
        """Run shards; raises StoppedError once `stop` is set, with no shard half-written."""
        ...


class LocalEngine:
    """Runs shards in this process."""

    def __init__(self, model: Model, *, workers: int, memory: int) -> None:
        """Compute with `workers` threads, with batches of about `memory` bytes in flight."""
        self._model = model
        self._workers = workers
        self._memory = memory

    def run(self, job: Job, shards: Sequence[int], *, watch: Watch, stop: Stop) -> None:
        """Run shards; raises StoppedError once `stop` is set, with no shard half-written."""
        ahead = self._batches_ahead(job)
        with _threads(1) as reader, _threads(self._workers) as workers:
            read = read_ahead(_read(job, shards), reader, ahead, stop)
            made = in_order(lambda item: (item[0], _compute(job, self._model, item[1])), read, workers, ahead, stop)
            with closing(read), closing(made):
                for shard, computed in groupby(made, key=itemgetter(0)):
                    tally = _write(job, shard, (some for _, some in computed), watch=watch, stop=stop)
                    watch.shard(shard, tally)

    def _batches_ahead(self, job: Job) -> int:
        """Return how many batches may be read, and how many computed, before one is written.

        Where memory has room for fewer than there are workers, some of them wait.
        """
        batch = COPIES * batch_rows(job.signature) * job.signature.row_bytes
        return max(1, min(self._memory // (2 * batch), 4 * self._workers))


@contextmanager
def _threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads, and wait for them; not where something is raised, for a call to a service may hang."""
    pool = ThreadPoolExecutor(count)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


Item = tuple[int, pa.RecordBatch | Skipped | DataError | None]


def _read(job: Job, shards: Iterable[int]) -> Iterator[Item]:
    """Yield the batches of shards, and None as each ends; what can't be read in its place, to be raised in its turn."""
    for shard in shards:
        try:
            for batch in job.read(shard):
                yield shard, batch
        except DataError as error:
            yield shard, error
            return
        yield shard, None


def _compute(job: Job, model: Model, batch: Any) -> Computed | Skipped | DataError | None:
    return job.compute(model, batch) if isinstance(batch, pa.RecordBatch) else batch


def _write(
    job: Job, shard: int, made: Iterator[Computed | Skipped | DataError | None], *, watch: Watch, stop: Stop
) -> Tally:
    with job.part(shard) as part:
        for some in made:
            if stop.is_set():
                raise StoppedError
            if isinstance(some, DataError):
                raise some
            if some is not None:
                watch.rows(part.add(some))
    return part.tally


def read_ahead(items: Iterator[T], reader: ThreadPoolExecutor, ahead: int, stop: Stop | None = None) -> Generator[T]:
    """Yield items that another thread takes from their iterator, so many ahead; raises as `in_order` does."""
    end = object()
    waiting = deque(reader.submit(next, items, end) for _ in range(ahead))
    try:
        while (item := _result(waiting.popleft(), stop)) is not end:
            waiting.append(reader.submit(next, items, end))
            yield item  # type: ignore[misc]
    finally:
        _cancel(waiting)


def in_order(
    work: Callable[[T], R], items: Iterator[T], workers: ThreadPoolExecutor, ahead: int, stop: Stop | None = None
) -> Generator[R]:
    """Yield what comes of items, in their order, of which so many are worked at or wait at a time.

    Raises what the work does, in its turn, and StoppedError where `stop` is set while it waits.
    """
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(workers.submit(work, item))
            if len(waiting) >= ahead:
                yield _result(waiting.popleft(), stop)
        while waiting:
            yield _result(waiting.popleft(), stop)
    finally:
        _cancel(waiting)


def _result(future: Future[R], stop: Stop | None) -> R:
    """Return what a future gives; raises StoppedError where `stop` is set before."""
    while stop is not None and not future.done():
        if stop.is_set():
            raise StoppedError
        with suppress(TimeoutError):
            future.exception(POLL_S)
    return future.result()


def _cancel(waiting: Iterable[Future[Any]]) -> None:
    for future in waiting:
        future.cancel()
