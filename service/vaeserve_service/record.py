"""What a model version has done: its batches, its requests' waits, and how its scores lie."""

from collections import defaultdict
from dataclasses import dataclass, field

from vaeserve.manifest import CalibrationSummary
from vaeserve_service.drift import Drift
from vaeserve_service.histogram import Histogram
from vaeserve_service.requests import Batch

ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0)
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


@dataclass(slots=True)
class Duration:
    """How often something was done, and for how many seconds in all."""

    count: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Tally:
    """What became of the requests for one operation of a version.

    computed: those of which all rows were, from their arrival on; failed: those whose batch was answered with an error.
    queued: their waits. computing: the seconds of their batches, as often as there were requests in one.
    batches: by how many rows they had. ended: when the last one did, in `time.perf_counter`'s seconds.
    """

    computed: Duration = field(default_factory=Duration)
    failed: Duration = field(default_factory=Duration)
    queued: Duration = field(default_factory=Duration)
    computing: float = 0.0
    batches: defaultdict[int, Duration] = field(default_factory=lambda: defaultdict(Duration))
    ended: float = 0.0


class Record:
    """The figures of a version since it was loaded. The event loop adds batches; any thread may add scores."""

    def __init__(self, calibration: CalibrationSummary) -> None:
        self.batch_rows = Histogram(ROWS)
        self.queue_seconds = Histogram(SECONDS)
        self.compute_seconds = Histogram(SECONDS)
        self.drift = Drift(calibration)
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)

    def batch(self, operation: str, batch: Batch) -> None:
        """Count a batch: its rows, how long it computed, and how long each request waited that it is the first of."""
        rows, started, ended = batch.rows, batch.started, batch.ended
        self.batch_rows.add(rows)
        self.compute_seconds.add(ended - started)
        tally = self.tallies[operation]
        alike = tally.batches[rows]
        alike.count += 1
        alike.seconds += ended - started
        tally.ended = ended
        tally.computing += (ended - started) * len(batch.pieces)
        queued, came_to = tally.queued, tally.failed if batch.failed else tally.computed
        for request, start, stop in batch.pieces:
            if start == 0:
                wait = started - request.arrived
                self.queue_seconds.add(wait)
                queued.count += 1
                queued.seconds += wait
            if stop == request.rows or batch.failed:
                came_to.count += 1
                came_to.seconds += ended - request.arrived
