"""Who runs shards on a Ray cluster: Ray Data's `map_batches`, with one actor a worker that holds the session.

What goes through Ray are shards' numbers and what was counted; rows are read and written where they are computed. An
actor that dies is replaced and its shard run again, to the same bytes.
"""

import json
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np

from vaeserve import errors
from vaeserve_jobs.engine import POLL_S, LocalEngine, Stop, StoppedError, Watch
from vaeserve_jobs.job import Job
from vaeserve_jobs.plan import Plan
from vaeserve_jobs.tally import Tally

ASK_S = 0.5


class RayEngine:
    """Runs shards on a Ray cluster: that of RAY_ADDRESS, or one on this machine."""

    def __init__(self, *, workers: int | None, memory: int) -> None:
        """Have so many workers of a processor each, by default one for each processor; raises MissingExtraError."""
        try:
            import ray
        except ModuleNotFoundError:
            raise errors.MissingExtraError("--engine ray takes pip install 'vaeserve[jobs,ray]'") from None
        self._ray = ray
        self._workers = workers
        self._memory = memory

    def run(self, job: Job, shards: Sequence[int], *, watch: Watch, stop: Stop) -> None:
        """Run shards; raises StoppedError once `stop` is set, with no shard half-written, and what a worker raised."""
        if not shards:
            return
        with self._cluster() as ray, ThreadPoolExecutor(1) as waiter:
            stopped = ray.remote(num_cpus=0)(_Flag).remote()
            items = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
            workers = min(self._workers or int(ray.cluster_resources()["CPU"]), len(shards))
            done = items.map_batches(
                _Worker,
                fn_constructor_args=(job, self._memory, stopped),
                batch_size=1,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            )
            rows, wrong = iter(done.iter_rows()), None
            while row := _next(rows, waiter, stop, stopped):
                if row["error"]:
                    wrong = wrong or row
                    continue
                tally = Tally.from_json(json.loads(row["said"]))
                watch.rows(tally.rows)
                watch.shard(int(row["shard"]), tally)
        # All that are there have answered: to leave Ray Data in its midst takes long, and is loud.
        if stop.is_set():
            raise StoppedError
        if wrong:
            raise getattr(errors, wrong["error"])(wrong["said"])

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        """Yield Ray, connected; end what was started here."""
        ray = self._ray
        started = not ray.is_initialized()
        if started:
            before = signal.getsignal(signal.SIGTERM)
            ray.init(log_to_driver=False, logging_level="error")
            signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which exits at once
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield ray
        finally:
            if started:
                ray.shutdown()


def _next(
    rows: Iterator[dict[str, Any]], waiter: ThreadPoolExecutor, stop: Stop, stopped: Any
) -> dict[str, Any] | None:
    """Return the next row, None after the last; tell the workers once `stop` is set."""
    row = waiter.submit(next, rows, None)
    while not wait([row], timeout=POLL_S).done:
        if stop.is_set():
            stopped.set.remote()
    return row.result()


class _Flag:
    """An actor that knows whether the job was told to stop."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        """Have it stop."""
        self._set = True

    def is_set(self) -> bool:
        """Tell whether it was."""
        return self._set


class _Asked:
    """What a worker sees of the flag: it asks now and then."""

    def __init__(self, flag: Any) -> None:
        self._flag = flag
        self._set, self._asked = False, 0.0

    def is_set(self) -> bool:
        """Tell whether the job was told to stop."""
        if not self._set and time.monotonic() - self._asked >= ASK_S:
            import ray

            self._set, self._asked = bool(ray.get(self._flag.is_set.remote())), time.monotonic()
        return self._set


class _Worker:
    """An actor: opens the model with its first shard, and runs those that it is given.

    What goes wrong is returned as what is done is: through Ray an error would lose what it is.
    """

    def __init__(self, job: Job, memory: int, flag: Any) -> None:
        self._job = job
        self._memory = memory
        self._stop = _Asked(flag)
        self._engine: LocalEngine | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run a shard, the only one of the batch."""
        (shard,) = batch["shard"].tolist()
        try:
            error, said = "", json.dumps(self._tally(shard).to_json())
        except (errors.VaeserveError, StoppedError) as fault:
            error, said = type(fault).__name__, str(fault)
        return {"shard": batch["shard"], "error": np.array([error]), "said": np.array([said])}

    def _tally(self, shard: int) -> Tally:
        if self._stop.is_set():
            raise StoppedError
        if self._engine is None:
            self._engine = LocalEngine(self._job.address.open(), workers=1, memory=self._memory)
        tallied = _Tallied()
        self._engine.run(self._job, [shard], watch=tallied, stop=self._stop)
        return tallied.tally


class _Tallied:
    """Keeps what was counted of a shard."""

    def __init__(self) -> None:
        self.tally = Tally()

    def begin(self, plan: Plan, shards: Sequence[int]) -> None:
        """Take that shards are to be run."""

    def rows(self, count: int) -> None:
        """Take that rows were computed."""

    def shard(self, shard: int, tally: Tally) -> None:
        """Keep it."""
        del shard
        self.tally = tally
