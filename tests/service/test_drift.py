"""How scores that are served lie against the calibration."""

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vaeserve.drift import REACH
from vaeserve.manifest import CalibrationSummary, Moments
from vaeserve.scores import Bound, Calibration, RowStatus, ScoreOptions, Scores, interpret
from vaeserve_service.drift import MANY_ROWS, MOST_BATCHES, Drift

KL, LOG_LIKELIHOOD = Moments(mean=3.0, standard_deviation=0.5), Moments(mean=-40.0, standard_deviation=8.0)
SUMMARY = CalibrationSummary(
    rows=999, unscorable=0, data="d", data_sha256="0", quantiles={bound: {} for bound in Bound},
    log_likelihood=LOG_LIKELIHOOD, kl=KL,
)  # fmt: skip


@pytest.fixture
def calibration() -> Calibration:
    """A calibration on 999 rows."""
    scores = np.sort(np.random.default_rng(0).normal(43, 8, 999)).astype(np.float32)
    return Calibration(dict.fromkeys(Bound, scores), 2, np.zeros(1, np.float32), 0.01)


def scored(
    calibration: Calibration, log_likelihood: Any, kl: Any, *, status: Any = None, options: ScoreOptions | None = None
) -> Scores:
    """Return the scores of rows with these terms, as a scorer would give them."""
    log_likelihood, kl = np.asarray(log_likelihood, np.float32), np.asarray(kl, np.float32)
    status = np.zeros(len(kl), np.int64) if status is None else np.asarray(status)
    elbo = np.where(status == 0, log_likelihood - kl, np.float32(np.nan))
    outputs = {"elbo": elbo, "iwae": elbo, "log_likelihood": log_likelihood, "kl": kl, "status": status}
    return interpret(outputs, calibration, options or ScoreOptions(), model="m", version="1", features=("a",))


def normal(count: int, *, seed: int, shift: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the terms of rows like those that calibrated, or of rows that are worse by `shift` nats."""
    generator = np.random.default_rng(seed)
    return generator.normal(-40 - shift, 8, count), np.full(count, 3.0)


def shares(drift: Drift) -> dict[str, float]:
    """Return the share of rows up to each p-value."""
    drift.count()
    buckets = dict(drift.p_values.buckets)
    return {bound: count / buckets["+Inf"] for bound, count in buckets.items()}


def mean(total: Any, drift: Drift) -> float:
    """Return a term's mean, as a query has it."""
    drift.count()
    return float((total.positive - total.negative) / drift.p_values.buckets[-1][1])


def test_rows_like_the_calibrations_are_uniform_and_others_are_not(calibration: Calibration) -> None:
    """Of rows like those that calibrated 1 % are past the 1 % bucket; of others many more, and their mean is lower."""
    same, other = Drift(SUMMARY), Drift(SUMMARY)
    same.add(scored(calibration, *normal(20_000, seed=1)))
    other.add(scored(calibration, *normal(20_000, seed=1, shift=16)))
    assert shares(same)["0.01"] == pytest.approx(0.01, abs=0.008)
    assert shares(same)["0.5"] == pytest.approx(0.5, abs=0.05)
    assert shares(other)["0.01"] > 0.2
    assert mean(same.log_likelihood, same) == pytest.approx(-40, abs=0.5)
    assert mean(other.log_likelihood, other) == pytest.approx(-56, abs=0.5)
    assert mean(same.kl, same) == pytest.approx(3)


def test_buckets_count_p_values_up_to_their_bound(calibration: Calibration) -> None:
    """A p-value that is a bound is in its bucket: each count is that of NumPy's comparison."""
    scores = scored(calibration, *normal(5000, seed=2))
    drift = Drift(SUMMARY)
    drift.add(scores)
    drift.count()
    for bound, count in drift.p_values.buckets:
        assert count == (scores.p_value <= float(bound)).sum()
    assert drift.p_values.sum == pytest.approx(scores.p_value.sum())
    assert drift.anomalous == scores.anomalous.sum()


@pytest.mark.parametrize("options", [ScoreOptions(seed=7), ScoreOptions(num_samples=5)])
def test_rows_that_were_scored_otherwise_are_counted_by_status_alone(
    calibration: Calibration, options: ScoreOptions
) -> None:
    """Where the calibration doesn't speak of the options, nor of a row that couldn't be scored, neither does drift."""
    drift = Drift(SUMMARY)
    drift.add(scored(calibration, *normal(10, seed=3), options=options))
    drift.add(scored(calibration, [-40, np.nan, np.nan], [3, np.nan, np.nan], status=[0, 1, 2]))
    drift.count()
    assert drift.by_status == {
        RowStatus.OK: 11,
        RowStatus.UNSCORABLE_MISSING: 1,
        RowStatus.UNSCORABLE_NOT_FINITE: 1,
        RowStatus.UNSCORABLE_UNKNOWN_CATEGORY: 0,
    }
    assert drift.p_values.buckets[-1] == ("+Inf", 1)
    assert (drift.kl.positive, drift.log_likelihood.negative) == (3, 40)


def test_one_wild_row_drowns_no_others(calibration: Calibration) -> None:
    """After a row of -1e30 nats, the next rows still move the sums by what they are."""
    drift = Drift(SUMMARY)
    drift.add(scored(calibration, [-1e30], [1e30]))
    drift.count()
    assert (drift.log_likelihood.negative, drift.kl.positive) == (40 + REACH * 8, 3 + REACH)
    before = drift.log_likelihood.negative
    drift.add(scored(calibration, [-41.5], [3]))
    drift.count()
    assert drift.log_likelihood.negative - before == 41.5
    assert 1e30 + 41.5 == 1e30  # which is what it keeps from


def test_sums_of_either_sign_only_grow(calibration: Calibration) -> None:
    """Log-likelihoods of densities may be positive: each of the two sums only grows, and their difference tells."""
    drift = Drift(SUMMARY)
    seen = []
    for terms in ([5.0, -7.0], [20.0], [-1.0, -2.0]):
        drift.add(scored(calibration, terms, np.full(len(terms), 3)))
        drift.count()
        seen.append((drift.log_likelihood.positive, drift.log_likelihood.negative))
    assert seen == [(5, 7), (25, 7), (25, 10)]


def test_what_waits_is_bounded_and_none_is_lost_among_threads(calibration: Calibration) -> None:
    """Rows are counted once each, whoever adds and whoever looks meanwhile; few wait at any time."""
    drift, one = Drift(SUMMARY), scored(calibration, [-40.0], [3.0])
    most, done = 0, threading.Event()

    def add() -> None:
        nonlocal most
        for _ in range(3000):
            drift.add(one)
            most = max(most, len(drift._waiting))

    def look() -> None:
        while not done.is_set():
            drift.count()

    looking = threading.Thread(target=look)
    adding = [threading.Thread(target=add) for _ in range(4)]
    for thread in (looking, *adding):
        thread.start()
    for thread in adding:
        thread.join()
    done.set()
    looking.join()
    drift.count()
    assert drift.by_status[RowStatus.OK] == 12_000
    assert drift.p_values.buckets[-1][1] == 12_000
    assert most <= MOST_BATCHES + len(adding)


def test_many_rows_do_not_wait(calibration: Calibration) -> None:
    """A large request is counted at once, so that its arrays aren't kept."""
    drift = Drift(SUMMARY)
    drift.add(scored(calibration, *normal(MANY_ROWS, seed=4)))
    assert not drift._waiting
    assert drift.by_status[RowStatus.OK] == MANY_ROWS
