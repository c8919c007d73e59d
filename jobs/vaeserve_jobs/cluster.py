"""Who runs shards on a Ray cluster: Ray Data's `map_batches`, with one actor a worker that holds the session.

What goes through Ray are shards' numbers and what was counted; rows are read and written where they are computed. An
actor that dies is replaced and its shard run again, to the same bytes.
"""

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from vaeserve.errors import MissingExtraError, VaeserveError
from vaeserve_jobs.engine import LocalEngine, StoppedError, Watch
from vaeserve_jobs.job import Job
from vaeserve_jobs.plan import Plan
from vaeserve_jobs.tally import Tally


class RayEngine:
    """Runs shards on a Ray cluster: that of RAY_ADDRESS, or one on this machine."""

    def __init__(self, *, workers: int | None, memory: int) -> None:
        """Have so many workers of a processor each, by default one for each processor; raises MissingExtraError."""
        try:
            import ray
        except ModuleNotFoundError:
            raise MissingExtraError("--engine ray takes pip install 'vaeserve[jobs,ray]'") from None
        self._ray = ray
        self._workers = workers
        self._memory = memory

    def run(self, job: Job, shards: Sequence[int], *, watch: Watch, stop: threading.Event) -> None:
        """Run shards; raises StoppedError once `stop` is set, with no shard half-written, and what a worker raises."""
        if not shards:
            return
        ray = self._ray
        started = not ray.is_initialized()
        if started:
            ray.init(log_to_driver=False, logging_level="error")
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            workers = min(self._workers or int(ray.cluster_resources()["CPU"]), len(shards))
            done = ray.data.from_items(
                [{"shard": shard} for shard in shards], override_num_blocks=len(shards)
            ).map_batches(
                _Worker,
                fn_constructor_args=(job, self._memory),
                batch_size=1,
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            )
            for row in done.iter_rows():
                tally = Tally.from_json(json.loads(row["tally"]))
                watch.rows(tally.rows)
                watch.shard(int(row["shard"]), tally)
                if stop.is_set():
                    raise StoppedError
        except ray.exceptions.RayError as error:
            raise _our_own(error) from None
        finally:
            if started:
                ray.shutdown()


class _Worker:
    """An actor: opens the model once, and runs the shards that it is given."""

    def __init__(self, job: Job, memory: int) -> None:
        self._job = job
        self._engine = LocalEngine(job.address.open(), workers=1, memory=memory)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        watched = _Tallies()
        shards = [int(shard) for shard in batch["shard"]]
        self._engine.run(self._job, shards, watch=watched, stop=threading.Event())
        said = [json.dumps(watched.tallies[shard].to_json()) for shard in shards]
        return {"shard": batch["shard"], "tally": np.array(said, object)}


class _Tallies:
    """Keeps what was counted of each shard."""

    def __init__(self) -> None:
        self.tallies: dict[int, Tally] = {}

    def begin(self, plan: Plan, shards: Sequence[int]) -> None:
        """Take that shards are to be run."""

    def rows(self, count: int) -> None:
        """Take that rows were computed."""

    def shard(self, shard: int, tally: Tally) -> None:
        """Keep it."""
        self.tallies[shard] = tally


def _our_own(error: BaseException | None) -> BaseException:
    """Return our error that a worker raised, from within those that Ray puts around it; else Ray's own."""
    first = error
    while error is not None:
        if isinstance(error, VaeserveError):
            return type(error)(*error.args[:1]) if not type(error).__module__.startswith("vaeserve") else error
        error = getattr(error, "cause", None) or error.__cause__
    return first or RuntimeError("Ray failed")
