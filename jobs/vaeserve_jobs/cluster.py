"""Who runs shards on a Ray cluster: Ray Data's `map_batches`, with one actor a worker that holds the session.

What goes through Ray are shards' numbers and what was counted; rows are read and written where they are computed. An
actor that dies is replaced and its shard run again, to the same bytes.
"""

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np

from vaeserve import errors
from vaeserve_jobs.engine import LocalEngine, StoppedError, Watch
from vaeserve_jobs.job import Job
from vaeserve_jobs.plan import Plan
from vaeserve_jobs.tally import Tally

POLL_S = 0.2


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

    def run(self, job: Job, shards: Sequence[int], *, watch: Watch, stop: threading.Event) -> None:
        """Run shards; raises StoppedError once `stop` is set, with no shard half-written, and what a worker raised."""
        if not shards:
            return
        # Ray ends first, so that nobody waits for what will never come.
        with ThreadPoolExecutor(1) as waiter, self._cluster() as ray:
            items = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
            workers = min(self._workers or int(ray.cluster_resources()["CPU"]), len(shards))
            done = items.map_batches(
                _Worker,
                fn_constructor_args=(job, self._memory),
                batch_size=1,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            )
            rows = iter(done.iter_rows())
            while row := _next(rows, waiter, stop):
                if row["error"]:
                    raise getattr(errors, row["error"])(row["said"])
                tally = Tally.from_json(json.loads(row["said"]))
                watch.rows(tally.rows)
                watch.shard(int(row["shard"]), tally)

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        """Yield Ray, connected and quiet; end what was started here."""
        ray = self._ray
        started = not ray.is_initialized()
        if started:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            before = signal.getsignal(signal.SIGTERM)
            ray.init(log_to_driver=False, logging_level="error")
            signal.signal(signal.SIGTERM, before)  # Ray has put its own there, which exits at once
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        ray.data.DataContext.get_current().enable_progress_bars = False
        try:
            yield ray
        finally:
            if started:
                ray.shutdown()


def _next(rows: Iterator[dict[str, Any]], waiter: ThreadPoolExecutor, stop: threading.Event) -> dict[str, Any] | None:
    """Return the next row, None after the last; raises StoppedError once `stop` is set."""
    row = waiter.submit(next, rows, None)
    while not wait([row], timeout=POLL_S).done:
        if stop.is_set():
            raise StoppedError
    return row.result()


class _Worker:
    """An actor: opens the model with its first shard, and runs those that it is given.

    What goes wrong is returned as what is done is: through Ray an error would lose what it is.
    """

    def __init__(self, job: Job, memory: int) -> None:
        self._job = job
        self._memory = memory
        self._engine: LocalEngine | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run a shard, the only one of the batch."""
        (shard,) = batch["shard"].tolist()
        try:
            error, said = "", json.dumps(self._tally(shard).to_json())
        except errors.VaeserveError as fault:
            error, said = type(fault).__name__, str(fault)
        return {"shard": batch["shard"], "error": np.array([error]), "said": np.array([said])}

    def _tally(self, shard: int) -> Tally:
        if self._engine is None:
            self._engine = LocalEngine(self._job.address.open(), workers=1, memory=self._memory)
        tallied = _Tallied()
        self._engine.run(self._job, [shard], watch=tallied, stop=threading.Event())
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
