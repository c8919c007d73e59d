"""Calibrating a model: the scores of normal rows that neither trained nor stopped it."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import ConfigError, RefusedError
from vaeserve.manifest import CalibrationSummary, Moments
from vaeserve.scores import LEAST_RATE, Bound, RowStatus, rows_needed
from vaeserve_service.runtime import Arrays, Runtime

# The rate to decide by, where none is asked for: the least of these that the calibration rows support.
FALSE_POSITIVE_RATES = (0.01, 0.05, 0.1)
QUANTILES = (0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)


class Calibrated(NamedTuple):
    """What rows calibrated.

    scores: of the rows that could be scored, ascending for each bound, nats, float32 [bounds, rows].
    log_likelihood, kl: the terms of their ELBOs, nats.
    baseline: each feature's mean negative log-likelihood on them, nats, float64 [features].
    unscorable: how many rows could not be scored.
    """

    scores: NDArray[np.float32]
    log_likelihood: Moments
    kl: Moments
    baseline: NDArray[np.float64]
    unscorable: int

    def summary(self, *, data: str, data_sha256: str) -> CalibrationSummary:
        """Return what a manifest says of it; `data` and its fingerprint are where the rows came from."""
        return CalibrationSummary(
            rows=self.scores.shape[1],
            unscorable=self.unscorable,
            data=data,
            data_sha256=data_sha256,
            quantiles={
                bound.value: {f"{q:g}": float(np.quantile(scores, q)) for q in QUANTILES}
                for bound, scores in zip(Bound, self.scores, strict=True)
            },
            log_likelihood=self.log_likelihood,
            kl=self.kl,
        )


def calibrate(runtime: Runtime, batches: Iterable[Arrays], noise: NDArray[np.float32], *, data: str) -> Calibrated:
    """Score normal rows, given in `batches` of a model's inputs, at `noise` [samples, latent].

    Raises RefusedError, naming `data`, where none of them can be scored.
    """
    parts, terms, unscorable, surprise = [], [], 0, np.zeros(1)
    for inputs in batches:
        outputs = runtime.score(inputs, noise)
        scored = outputs["status"] == RowStatus.OK
        parts.append(np.stack([-outputs[bound.value][scored] for bound in Bound]))
        terms.append(np.stack([outputs[name][scored] for name in ("log_likelihood", "kl")]))
        surprise = surprise - outputs["feature_log_likelihood"][scored].sum(0, dtype=np.float64)
        unscorable += int((~scored).sum())
    scores = np.concatenate(parts, axis=1) if parts else np.empty((len(Bound), 0), np.float32)
    if not scores.size:
        raise RefusedError(f"{data}: none of its {unscorable} rows can be scored; expected one or more")
    log_likelihood, kl = map(_moments, np.concatenate(terms, axis=1))
    return Calibrated(np.sort(scores, axis=1), log_likelihood, kl, surprise / scores.shape[1], unscorable)


def _moments(values: NDArray[np.float32]) -> Moments:
    return Moments(mean=float(values.mean(dtype=np.float64)), standard_deviation=float(values.std(dtype=np.float64)))


def rate_for(rows: int, asked: float | None = None) -> float:
    """Return the false-positive rate to decide by with so many calibration rows.

    Raises ConfigError for an `asked` one that can't be, or that the rows can't support.
    """
    if asked is None:
        return next((rate for rate in FALSE_POSITIVE_RATES if rows >= rows_needed(rate)), 1 / (rows + 1))
    if not LEAST_RATE <= asked < 1:
        raise ConfigError(f"--false-positive-rate {asked:g}: expected {LEAST_RATE:g} or more and less than 1")
    if rows < rows_needed(asked):
        raise ConfigError(
            f"--false-positive-rate {asked:g}: {rows} calibration rows support {1 / (rows + 1):.3g} or more; "
            f"{asked:g} takes {rows_needed(asked)}"
        )
    return asked
