"""What a model version has done: its batches, its requests' waits, and how its scores lie."""

from collections.abc import Iterable

from vaeserve.manifest import CalibrationSummary
from vaeserve_service.drift import Drift
from vaeserve_service.histogram import Histogram

ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0)
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Record:
    """The figures of a version since it was loaded. One thread at a time adds a batch; any may add scores."""

    def __init__(self, calibration: CalibrationSummary) -> None:
        self.batch_rows = Histogram(ROWS)
        self.queue_seconds = Histogram(SECONDS)
        self.compute_seconds = Histogram(SECONDS)
        self.drift = Drift(calibration)

    def batch(self, rows: int, *, waits: Iterable[float], seconds: float) -> None:
        """Count a batch: its rows, how long each of its requests waited, and how long it computed, in seconds."""
        self.batch_rows.add(rows)
        self.compute_seconds.add(seconds)
        for wait in waits:
            self.queue_seconds.add(wait)
