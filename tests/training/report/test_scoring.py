"""Thresholds, calibration and detection as a report measures them."""

import numpy as np
import pytest
from sklearn.metrics import auc

from vaeserve.scores import Bound, Calibration
from vaeserve_training.report.scoring import coverage, curves, thresholds


def calibrated(rows: int) -> Calibration:
    """Return a calibration with the scores 0, 1, 2, ..."""
    scores = np.arange(rows, dtype=np.float32)
    return Calibration(dict.fromkeys(Bound, scores), 2, np.zeros(1, np.float32), 0.05)


def test_a_threshold_flags_what_its_p_value_flags() -> None:
    """A score above a rate's threshold has a p-value within the rate, and one at it hasn't."""
    calibration = calibrated(999)
    for line in thresholds(calibration):
        assert line.score is not None
        above = np.nextafter(np.float32(line.score), np.float32(np.inf))
        at, beyond = calibration.p_values(np.array([line.score, above], np.float32), Bound.ELBO)
        assert beyond <= line.rate < at


def test_a_rate_that_the_rows_cannot_support_has_no_threshold_and_a_reason() -> None:
    """99 rows support 5 % and 1 %; of 0.1 % it is said how many it takes."""
    five, one, tenth = thresholds(calibrated(99))
    assert five.score is not None
    assert one.score is not None
    assert tenth.score is None
    assert tenth.refusal == "99 calibration rows support 0.01 or more, and 0.001 takes 999"


def test_p_values_of_exchangeable_rows_stay_in_the_band() -> None:
    """Of rates measured on rows like those that calibrated, 95 % lie in the band, over many calibrations."""
    generator = np.random.default_rng(0)
    inside = []
    for _ in range(200):
        scores = np.sort(generator.normal(size=150)).astype(np.float32)
        calibration = Calibration(dict.fromkeys(Bound, scores), 2, np.zeros(1, np.float32), 0.05)
        p_values = calibration.p_values(generator.normal(size=80).astype(np.float32), Bound.ELBO)
        measured = coverage(p_values, calibration_rows=150)
        inside.append(((measured.share >= measured.low) & (measured.share <= measured.high)).mean())
    assert 0.94 < np.mean(inside) < 0.985  # counts are whole numbers, so the band is a little wide


def test_p_values_of_other_rows_leave_the_band() -> None:
    """Rows that score higher than those that calibrated are flagged too often, and the plot shows it."""
    generator = np.random.default_rng(0)
    scores = np.sort(generator.normal(size=300)).astype(np.float32)
    calibration = Calibration(dict.fromkeys(Bound, scores), 2, np.zeros(1, np.float32), 0.05)
    p_values = calibration.p_values((1 + generator.normal(size=200)).astype(np.float32), Bound.ELBO)
    measured = coverage(p_values, calibration_rows=300)
    assert (measured.share > measured.high).mean() > 0.5


def test_curves_have_the_areas_that_they_say() -> None:
    """The ROC curve's area is the AUROC, and the share of anomalous rows is the precision of chance."""
    generator = np.random.default_rng(0)
    anomalous = generator.random(300) < 0.2
    score = generator.normal(size=300) + 1.5 * anomalous
    measured = curves(score, anomalous)
    assert measured is not None
    assert auc(measured.false_positives, measured.true_positives) == pytest.approx(measured.auroc)
    assert measured.base == pytest.approx(anomalous.mean())
    assert measured.auroc > 0.8


def test_rows_of_one_kind_have_no_curves() -> None:
    """Without rows of both kinds there is nothing to tell apart."""
    assert curves(np.arange(5.0), np.zeros(5, bool)) is None
