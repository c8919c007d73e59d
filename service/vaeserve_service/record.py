"""What a model version has done: its batches, its requests' waits, and how its scores lie."""

from vaeserve.manifest import CalibrationSummary
from vaeserve_service.drift import Drift
from vaeserve_service.histogram import Histogram
from vaeserve_service.requests import Batch

ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0)
SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Record:
    """The figures of a version since it was loaded. The event loop adds batches; any thread may add scores."""

    def __init__(self, calibration: CalibrationSummary) -> None:
        self.batch_rows = Histogram(ROWS)
        self.queue_seconds = Histogram(SECONDS)
        self.compute_seconds = Histogram(SECONDS)
        self.drift = Drift(calibration)

    def batch(self, batch: Batch) -> None:
        """Count a batch: its rows, how long it computed, and how long each request waited that it is the first of."""
        self.batch_rows.add(batch.rows)
        self.compute_seconds.add(batch.ended - batch.started)
        for piece in batch.pieces:
            if piece.start == 0:
                self.queue_seconds.add(batch.started - piece.request.arrived)
