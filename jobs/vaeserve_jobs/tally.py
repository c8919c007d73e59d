"""What is counted of a shard's rows as they are computed: it adds up to the job's."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vaeserve.drift import P_VALUES, count_p_values, within_reach
from vaeserve.manifest import CalibrationSummary
from vaeserve.scores import RowStatus, Scores
from vaeserve_jobs.sketch import Sketch


@dataclass
class Drift:
    """How scores lie against the calibration: counts of p-values by `P_VALUES`, and sums of terms within reach.

    Only rows that were scored as the calibration's were have a p-value, and are in it.
    """

    rows: int = 0
    p_values: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(P_VALUES) + 1, np.int64))
    log_likelihood: float = 0.0
    kl: float = 0.0

    def add(self, scores: Scores, calibration: CalibrationSummary) -> None:
        """Count a batch's rows."""
        calibrated = ~np.isnan(scores.p_value)
        self.rows += int(calibrated.sum())
        self.p_values += count_p_values(scores.p_value[calibrated])
        likelihood = within_reach(scores.log_likelihood[calibrated], calibration.log_likelihood)
        self.log_likelihood += float(likelihood.sum())
        self.kl += float(within_reach(scores.kl[calibrated], calibration.kl).sum())

    def merge(self, other: "Drift") -> None:
        """Count what another has counted."""
        self.rows += other.rows
        self.p_values += other.p_values
        self.log_likelihood += other.log_likelihood
        self.kl += other.kl


@dataclass
class Tally:
    """Counts of rows: `rows` read, `written` of them, and what became of them.

    skipped: for each file that broke off, its position in the plan and why.
    """

    rows: int = 0
    written: int = 0
    anomalous: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    scores: Sketch = field(default_factory=Sketch)
    drift: Drift = field(default_factory=Drift)
    skipped: list[tuple[int, str]] = field(default_factory=list)

    @property
    def unscorable(self) -> int:
        """How many rows the model couldn't take."""
        return self.rows - self.by_status[RowStatus.OK.name]

    def add(self, status: NDArray[np.int8], *, written: int) -> None:
        """Count a batch's rows."""
        self.rows += len(status)
        self.written += written
        counts = np.bincount(status, minlength=len(RowStatus)).tolist()
        self.by_status.update({one.name: count for one, count in zip(RowStatus, counts, strict=True) if count})

    def add_scores(self, scores: Scores, calibration: CalibrationSummary) -> None:
        """Count a batch's scores."""
        self.anomalous += int(scores.anomalous.sum())
        self.scores.add(scores.score[scores.status == RowStatus.OK])
        self.drift.add(scores, calibration)

    def merge(self, other: "Tally") -> None:
        """Count what another has counted."""
        self.rows += other.rows
        self.written += other.written
        self.anomalous += other.anomalous
        self.by_status.update(other.by_status)
        self.scores.merge(other.scores)
        self.drift.merge(other.drift)
        self.skipped += other.skipped

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        drift = self.drift
        return {
            "rows": self.rows,
            "written": self.written,
            "anomalous": self.anomalous,
            "by_status": dict(self.by_status),
            "scores": self.scores.to_json(),
            "drift": {
                "rows": drift.rows,
                "p_values": drift.p_values.tolist(),
                "log_likelihood": drift.log_likelihood,
                "kl": drift.kl,
            },
            "skipped": self.skipped,
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Self:
        """Return what `to_json` was said of."""
        drift = said["drift"]
        return cls(
            rows=said["rows"],
            written=said["written"],
            anomalous=said["anomalous"],
            by_status=Counter(said["by_status"]),
            scores=Sketch.from_json(said["scores"]),
            drift=Drift(**(drift | {"p_values": np.array(drift["p_values"], np.int64)})),
            skipped=[(file, reason) for file, reason in said["skipped"]],
        )
