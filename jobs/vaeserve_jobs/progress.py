"""How a job comes on: a bar on a terminal, elsewhere a line of JSON now and then, and metrics if asked for."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from vaeserve.errors import ConfigError
from vaeserve.scores import RowStatus
from vaeserve_jobs.plan import Plan
from vaeserve_jobs.tally import Tally

EVERY_S = 10.0

Clock = Callable[[], float]


class Meter:
    """Watches a job: counts rows and shards, and tells all those who show them, at most every `EVERY_S` seconds."""

    def __init__(self, *shows: "Show", clock: Clock = time.monotonic) -> None:
        self._shows = shows
        self._clock = clock
        self._started = self._told = clock()
        self.total = Tally()
        self.counted = self.expected = self.shards = self.shards_done = 0
        self.has_begun = False

    @property
    def seconds(self) -> float:
        """How long it has been since the start."""
        return self._clock() - self._started

    @property
    def rows_per_s(self) -> float:
        """How many rows were computed a second, since the start."""
        return self.counted / max(self.seconds, 1e-9)

    @property
    def share(self) -> float:
        """Which share is done: all with the last shard, and before that by rows, which of text files are estimated."""
        if self.shards_done == self.shards:
            return 1.0
        return min(1.0, self.counted / max(1, self.expected))

    @property
    def seconds_left(self) -> float | None:
        """How long it will take at this rate; None while none is known."""
        return (self.expected * (1 - self.share)) / self.rows_per_s if self.counted else None

    def begin(self, plan: Plan, shards: Sequence[int]) -> None:
        """Take that these of a plan's shards are to be run."""
        self.expected = sum(plan.rows(shard) for shard in shards)
        self.shards = len(shards)
        self.has_begun = True
        self._tell()

    def rows(self, count: int) -> None:
        """Take that so many rows were computed."""
        self.counted += count
        for show in self._shows:
            show.moved(self)
        if self._clock() - self._told >= EVERY_S:
            self._tell()

    def shard(self, shard: int, tally: Tally) -> None:
        """Take that a shard is done."""
        del shard
        self.shards_done += 1
        self.total.merge(tally)

    def end(self) -> None:
        """Tell how it ended."""
        self._tell()

    def _tell(self) -> None:
        self._told = self._clock()
        for show in self._shows:
            show.told(self)


class Show:
    """Shows how a job comes on; does nothing by itself."""

    def moved(self, meter: Meter) -> None:
        """Take that there were rows."""

    def told(self, meter: Meter) -> None:
        """Take that it is time to say so."""


class Lines(Show):
    """A line of JSON each time."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def told(self, meter: Meter) -> None:
        """Say a line."""
        left = meter.seconds_left
        self._say(
            json.dumps({
                "event": "progress",
                "rows": meter.counted,
                "share": round(meter.share, 4),
                "rows_per_s": round(meter.rows_per_s),
                "seconds_left": None if left is None else round(left),
                "shards": meter.shards,
                "shards_done": meter.shards_done,
            })
        )  # fmt: skip


class Bar(Show):
    """A bar that moves, on a terminal."""

    def __init__(self, console: Console, what: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:,.0f} rows, {task.fields[rate]:,.0f} rows/s"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task(what, total=None, rate=0.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def moved(self, meter: Meter) -> None:
        """Move the bar."""
        total = meter.counted if meter.share == 1.0 else meter.expected
        self._progress.update(self._task, completed=meter.counted, total=total, rate=meter.rows_per_s)

    def told(self, meter: Meter) -> None:
        """Move it where there are no rows, as in the end."""
        self.moved(meter)


class MetricsFile(Show):
    """A file of Prometheus metrics for node_exporter's textfile collector; it is replaced whole.

    One that can't be written is told before anything is computed. A job that has begun isn't stopped by a disk that
    is full: the file stays as it was, which `say` is told once.
    """

    def __init__(self, path: Path, labels: dict[str, str], say: Callable[[str], None]) -> None:
        self._path = path
        self._labels = labels
        self._say = say
        self._was_written = self._has_said = False
        self._registry = CollectorRegistry()
        self._computed = self._gauge("vaeserve_job_computed_rows", "Rows computed by this process.")
        self._rate = self._gauge("vaeserve_job_rows_per_second", "Rows computed a second since the start.")
        self._share = self._gauge("vaeserve_job_done_ratio", "The share of this process's rows that is done.")
        self._shards = self._gauge("vaeserve_job_shards", "Shards that this process is to run.")
        self._done = self._gauge("vaeserve_job_done_shards", "Shards that are done, of those.")
        self._anomalous = self._gauge("vaeserve_job_anomalous_rows", "Anomalous rows of those shards.")
        self._scored = self._gauge("vaeserve_job_scored_rows", "Rows of those shards.", "status")

    def told(self, meter: Meter) -> None:
        """Write the file; raises ConfigError, naming it, where it can't be the first time."""
        values = {
            self._computed: meter.counted,
            self._rate: meter.rows_per_s,
            self._share: meter.share,
            self._shards: meter.shards,
            self._done: meter.shards_done,
            self._anomalous: meter.total.anomalous,
        }
        for gauge, value in values.items():
            gauge.labels(**self._labels).set(value)
        for status in RowStatus:
            self._scored.labels(**self._labels, status=status.name.lower()).set(meter.total.by_status[status.name])
        try:
            write_to_textfile(str(self._path), self._registry)
        except OSError as error:
            said = f"--metrics-file {self._path}: {error.strerror}; expected a file to write to"
            if not self._was_written:
                raise ConfigError(said) from None
            if not self._has_said:
                self._say(f"warning: {said}")
            self._has_said = True
        self._was_written = True

    def _gauge(self, name: str, what: str, *labels: str) -> Gauge:
        return Gauge(name, what, (*self._labels, *labels), registry=self._registry)
