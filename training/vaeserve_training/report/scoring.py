"""What scores say: thresholds that the calibration supports, how p-values hold, how well labels are told apart."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom
from sklearn.metrics import precision_recall_curve, roc_curve

from vaeserve.errors import InvalidInputError
from vaeserve.scores import Bound, Calibration, ScoreOptions
from vaeserve_training.evaluate import detection

Array = NDArray[np.float64]
RATES = (0.05, 0.01, 0.001)
# How many rates the calibration plot has.
PLOTTED_RATES = 60


class Threshold(NamedTuple):
    """The score, nats, above which at most `rate` of normal rows are expected; None, and why, if none is known."""

    rate: float
    score: float | None
    refusal: str = ""


def thresholds(calibration: Calibration, rates: Sequence[float] = RATES) -> list[Threshold]:
    """Return the threshold of each rate."""
    found = []
    for rate in rates:
        try:
            calibration.rate(ScoreOptions(false_positive_rate=rate))
        except InvalidInputError as error:
            found.append(Threshold(rate, None, str(error).partition("; ")[2]))
        else:
            found.append(Threshold(rate, calibration.threshold(Bound.ELBO, rate)))
    return found


class Coverage(NamedTuple):
    """The share of normal rows whose p-value is within each rate, and where 95 % of such shares would lie.

    All [rates].
    """

    rates: Array
    share: Array
    low: Array
    high: Array


def coverage(p_values: Array, *, calibration_rows: int) -> Coverage:
    """Measure p-values of normal rows.

    Where they are exchangeable with the calibration rows, the rows within a rate of k / (n + 1) are beta-binomial with
    k and n + 1 - k, for the threshold is itself estimated. Source: Vovk, Conditional Validity of Inductive Conformal
    Predictors, 2012, proposition 2a.
    """
    steps = np.linspace(1, calibration_rows, PLOTTED_RATES).round().astype(int)
    k = np.unique(steps)
    rates = k / (calibration_rows + 1)
    share = (p_values[:, None] <= rates + 1e-12).mean(0)
    expected = betabinom(len(p_values), k, calibration_rows + 1 - k)
    return Coverage(rates, share, expected.ppf(0.025) / len(p_values), expected.ppf(0.975) / len(p_values))


class Curves(NamedTuple):
    """How well the score tells anomalous rows: ROC, precision-recall, their areas, and the anomalous share."""

    false_positives: Array
    true_positives: Array
    recall: Array
    precision: Array
    auroc: float
    average_precision: float
    base: float


def curves(score: Array, anomalous: NDArray[np.bool_]) -> Curves | None:
    """Measure scores by labels; None where all rows are of one kind."""
    figures = detection(score, anomalous)
    if not figures:
        return None
    false_positives, true_positives, _ = roc_curve(anomalous, score)
    precision, recall, _ = precision_recall_curve(anomalous, score)
    return Curves(
        false_positives,
        true_positives,
        recall,
        precision,
        figures["auroc"],
        figures["average_precision"],
        float(anomalous.mean()),
    )
