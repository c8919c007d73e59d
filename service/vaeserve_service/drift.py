"""How the scores of rows that are served lie against the calibration, as they come; `vaeserve.drift` says by what."""

from collections import Counter, deque
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.drift import P_VALUES, count_p_values, within_reach
from vaeserve.manifest import CalibrationSummary, Moments
from vaeserve.scores import RowStatus, Scores
from vaeserve_service.histogram import Histogram

# NumPy takes microseconds a call, whether for a row or a thousand: so many of them, or many rows, are counted at once.
MOST_BATCHES = 256
MANY_ROWS = 1024

Columns = tuple[NDArray[Any], ...]


class SignedSum:
    """A sum of numbers of either sign, as two that only grow: what Prometheus can take a rate of."""

    def __init__(self, calibration: Moments) -> None:
        self._calibration = calibration
        self.positive = 0.0
        self.negative = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Add numbers, none of them NaN, each within reach of the calibration."""
        within = within_reach(values, self._calibration)
        self.positive += float(within.sum(where=within > 0))
        self.negative -= float(within.sum(where=within < 0))


class Drift:
    """Counts of a version's rows, by status and by p-value, and sums of their terms.

    Only rows that were scored as the calibration's were have a p-value; only they are in `p_values`, `kl` and
    `log_likelihood`. Any thread may add and read.
    """

    def __init__(self, calibration: CalibrationSummary) -> None:
        self.calibration = calibration
        self.p_values = Histogram(P_VALUES)
        self.kl = SignedSum(calibration.kl)
        self.log_likelihood = SignedSum(calibration.log_likelihood)
        self.by_status: Counter[RowStatus] = Counter(dict.fromkeys(RowStatus, 0))
        self.anomalous = 0
        self._waiting: deque[Columns] = deque()
        self._lock = Lock()

    def add(self, scores: Scores) -> None:
        """Count rows that were scored."""
        # Most come by the row. Their arrays wait until there are some, or somebody looks; copies of those that ONNX
        # Runtime made, which would keep a session's memory for as long.
        terms = (scores.kl.copy(), scores.log_likelihood.copy())
        self._waiting.append((scores.status, scores.p_value, scores.anomalous, *terms))
        if len(self._waiting) >= MOST_BATCHES or len(scores.score) >= MANY_ROWS:
            self.count()

    def count(self) -> None:
        """Count what waits, so that all is in the numbers."""
        with self._lock:
            batches = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if batches:
                self._count(*map(np.concatenate, zip(*batches, strict=True)))

    def _count(
        self,
        status: NDArray[np.int8],
        p_value: NDArray[np.float64],
        anomalous: NDArray[np.bool_],
        kl: NDArray[np.float32],
        log_likelihood: NDArray[np.float32],
    ) -> None:
        counts = np.bincount(status, minlength=len(RowStatus)).tolist()
        self.by_status.update(dict(zip(RowStatus, counts, strict=True)))
        self.anomalous += int(anomalous.sum())
        calibrated = ~np.isnan(p_value)
        p_value = p_value[calibrated]
        self.p_values.add_counted(count_p_values(p_value).tolist(), float(p_value.sum()))
        self.kl.add(kl[calibrated])
        self.log_likelihood.add(log_likelihood[calibrated])
