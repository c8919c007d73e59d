"""The rows of a report with all that the model says of them, computed once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vaeserve.scores import Bound, RowStatus
from vaeserve_training.data import Arrays, Dataset
from vaeserve_training.report.latents import Latents
from vaeserve_training.report.subject import Subject

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shown:
    """Rows that could be scored.

    positions: each row's number in its source, from 0. score, elbo, log_likelihood, kl: nats, [rows]. p_value: [rows].
    excess: by how many nats each feature is worse explained than on normal rows, [rows, features]. anomalous: by their
    labels, or None where there are none. unscorable: how many more rows there were.
    """

    rows: Dataset
    positions: NDArray[np.intp]
    score: Array
    elbo: Array
    log_likelihood: Array
    kl: Array
    p_value: Array
    excess: Array
    latents: Latents
    anomalous: NDArray[np.bool_] | None
    unscorable: int

    @property
    def normal(self) -> NDArray[np.bool_]:
        """Which rows aren't labelled anomalous."""
        return np.ones(len(self.rows), bool) if self.anomalous is None else ~self.anomalous

    @property
    def typical(self) -> NDArray[np.intp]:
        """Normal rows, or all where none is, the one with the median score first, then by how near theirs is to it."""
        some = np.flatnonzero(self.normal if self.normal.any() else np.ones(len(self.rows), bool))
        apart = np.abs(self.score[some] - np.median(self.score[some]))
        return np.asarray(some[np.argsort(apart, kind="stable")])

    @property
    def worst(self) -> NDArray[np.intp]:
        """The rows, the most anomalous first."""
        return np.argsort(-self.score, kind="stable")

    @cached_property
    def usual_latents(self) -> Latents:
        """The posteriors of normal rows, or of all where none is: what the use of a dimension is measured on."""
        rows = np.sort(self.typical)
        return Latents(self.latents.mean[rows], self.latents.log_variance[rows])

    @property
    def usual(self) -> Arrays:
        """The inputs of normal rows, or of all where none is."""
        return self.inputs(np.sort(self.typical))

    def inputs(self, rows: NDArray[np.intp]) -> Arrays:
        """Return some rows' inputs."""
        return self.rows.take(rows)


def show(subject: Subject) -> Shown | None:
    """Encode and score a subject's rows; None where it has none, or none that can be scored."""
    if subject.rows is None or not len(subject.rows):
        return None
    outputs = subject.model.score(subject.rows.inputs)
    positions = np.flatnonzero(outputs["status"] == RowStatus.OK)
    if not len(positions):
        return None
    rows = subject.rows[positions]
    posterior = subject.model.encode(rows.inputs)
    terms = {name: outputs[name][positions].astype(np.float64) for name in ("elbo", "log_likelihood", "kl")}
    score = -outputs["elbo"][positions]
    surprise = -outputs["feature_log_likelihood"][positions].astype(np.float64)
    return Shown(
        rows=rows,
        positions=positions if subject.rows.rows is None else subject.rows.rows[positions],
        score=score.astype(np.float64),
        p_value=subject.calibration.p_values(score, Bound.ELBO),
        excess=surprise - subject.calibration.baseline,
        latents=Latents(posterior["mean"].astype(np.float64), posterior["log_variance"].astype(np.float64)),
        anomalous=rows.anomalous,
        unscorable=len(subject.rows) - len(positions),
        **terms,
    )
