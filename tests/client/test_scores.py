"""What a scorer's outputs mean."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeserve.errors import InvalidInputError, OutOfRangeError
from vaeserve.scores import (
    Bound,
    Calibration,
    RowStatus,
    ScoreOptions,
    Scores,
    count_samples,
    draw_noise,
    interpret,
    rows_needed,
)

FINITE = st.floats(-1e6, 1e6, width=32)


def calibration(scores: list[float], *, rate: float = 0.1, features: int = 3) -> Calibration:
    """Return a calibration with the same scores for both bounds."""
    ordered = np.sort(np.array(scores, np.float32))
    return Calibration({Bound.ELBO: ordered, Bound.IWAE: ordered}, 8, np.zeros(features, np.float32), rate)


def outputs(elbo: list[float], features: int = 3) -> dict[str, np.ndarray]:
    """Return a scorer's outputs with these bounds."""
    bounds = np.array(elbo, np.float32)
    feature = np.tile(-np.arange(features, dtype=np.float32), (len(bounds), 1))
    return {
        "elbo": bounds,
        "iwae": bounds + 1,
        "log_likelihood": bounds,
        "kl": bounds * 0,
        "feature_log_likelihood": np.where(np.isnan(bounds)[:, None], np.nan, feature).astype(np.float32),
        "status": np.where(np.isnan(bounds), 1, 0).astype(np.int32),
    }


def scored(elbo: list[float], options: ScoreOptions, held_out: Calibration | None = None) -> Scores:
    """Return the scores of rows with these bounds."""
    held_out = held_out or calibration(list(range(99)))
    return interpret(outputs(elbo), held_out, options, model="m", version="1", features=("a", "b", "c"))


@given(st.lists(FINITE, min_size=1, max_size=50), st.lists(FINITE, max_size=20))
def test_p_values_count_the_calibration_scores_at_least_as_high(held_out: list[float], new: list[float]) -> None:
    """The p-value is (1 + #{calibration scores >= score}) / (n + 1), ties included."""
    new = new + held_out[:3]
    p_values = calibration(held_out).p_values(np.array(new, np.float32), Bound.ELBO)
    held = np.array(held_out, np.float32)
    expected = [(1 + (held >= np.float32(score)).sum()) / (len(held) + 1) for score in new]
    assert p_values.tolist() == pytest.approx(expected)


def test_p_values_are_valid_for_exchangeable_rows() -> None:
    """Of many fresh normal rows, no more than the rate asked for are called anomalous, up to chance."""
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(200):
        held_out = calibration(generator.normal(size=199).tolist())
        p_values = held_out.p_values(generator.normal(size=200).astype(np.float32), Bound.ELBO)
        rates.append((p_values <= 0.1).mean())
    # The mean of 200 shares, each of standard deviation sqrt(.1 * .9 * (1/200 + 1/200)) = 0.03.
    assert np.mean(rates) == pytest.approx(0.1, abs=4 * 0.03 / np.sqrt(200))


def test_rows_are_anomalous_at_or_below_the_rate() -> None:
    """A row is anomalous if its p-value is within the rate, the model's own where none is asked for."""
    elbo = [-98.5, -95.5, -50.0]  # p-values 0.01, 0.04, 0.5
    assert scored(elbo, ScoreOptions()).anomalous.tolist() == [True, True, False]
    assert scored(elbo, ScoreOptions(false_positive_rate=0.01)).anomalous.tolist() == [True, False, False]


def test_an_unscorable_row_is_nan_and_not_anomalous() -> None:
    """A row without a score has NaN for a p-value, no attributions, and is not anomalous; its neighbour is unharmed."""
    scores = scored([np.nan, -200.0], ScoreOptions(top_features=2))
    assert np.isnan(scores.p_value[0])
    assert scores.anomalous.tolist() == [False, True]
    assert scores.status.tolist() == [RowStatus.UNSCORABLE_MISSING, RowStatus.OK]
    assert scores.attributions[0] == ()
    assert [a.feature for a in scores.attributions[1]] == ["c", "b"]


def test_attributions_rank_by_the_excess_over_the_baseline() -> None:
    """Features are named by how far their term exceeds its mean on normal rows."""
    held_out = Calibration({bound: np.zeros(9, np.float32) for bound in Bound}, 8, np.array([0, 0, 5], np.float32), 0.1)
    scores = scored([0.0], ScoreOptions(top_features=9), held_out)
    assert scores.attributions[0] == (("b", 1.0), ("a", 0.0), ("c", -3.0))


@pytest.mark.parametrize("options", [ScoreOptions(num_samples=4), ScoreOptions(seed=1)])
def test_other_options_than_the_calibrated_have_no_p_values(options: ScoreOptions) -> None:
    """With other noise than the calibrated, p-values are NaN, nothing is anomalous, and no rate can be asked for."""
    scores = scored([-98.5], options)
    assert np.isnan(scores.p_value).all()
    assert not scores.anomalous.any()
    with pytest.raises(InvalidInputError, match="expected num_samples = 8 and no seed"):
        scored([0.0], ScoreOptions(options.num_samples, seed=options.seed, false_positive_rate=0.1))


def test_a_rate_that_the_rows_cannot_support_is_refused() -> None:
    """A rate below 1 / (n + 1) is refused, with the rows it would take."""
    assert calibration([0.0] * 99).rate(ScoreOptions(false_positive_rate=0.01)) == 0.01
    with pytest.raises(InvalidInputError, match="98 calibration rows support 0.0101 or more, and 0.01 takes 99"):
        calibration([0.0] * 98).rate(ScoreOptions(false_positive_rate=0.01))


@given(st.integers(1, 10**6))
def test_rows_needed_are_the_least_that_support_a_rate(rows: int) -> None:
    """The rate 1 / (n + 1) takes n rows, and not one fewer."""
    assert rows_needed(1 / (rows + 1)) == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples: 0; expected a whole number from 1 to 4294967295"),
        ({"seed": -1}, "seed: -1; expected a whole number from 0 to"),
        ({"false_positive_rate": 1.0}, "false_positive_rate: 1.0; expected a number from 1e-09 to 0.999999999"),
        ({"false_positive_rate": float("nan")}, "false_positive_rate: nan"),
        ({"false_positive_rate": 1e-310}, "false_positive_rate: 1e-310; expected a number from 1e-09"),
        ({"false_positive_rate": "0.1"}, "false_positive_rate: '0.1'; expected a number"),
        ({"num_samples": 1.5}, "num_samples: 1.5; expected a whole number"),
        ({"num_samples": 2**32}, "num_samples: 4294967296; expected a whole number from 1 to 4294967295"),
        ({"bound": "iwae"}, "bound: 'iwae'; expected Bound.ELBO or Bound.IWAE"),
        ({"top_features": -1}, "top_features: -1; expected a whole number from 0"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, float], message: str) -> None:
    """An option out of range is refused by name."""
    with pytest.raises(InvalidInputError, match=message):
        ScoreOptions(**options)  # type: ignore[arg-type]


def test_noise_is_the_bundles_or_the_seeds() -> None:
    """Without a seed noise is the bundle's first points; with one it is the seed's, the same each time."""
    points = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    assert draw_noise(points, 4, seed=None).tolist() == points[:4].tolist()
    first, again = draw_noise(points, 5, seed=7), draw_noise(points, 5, seed=7)
    assert first.shape == (5, 3)
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != draw_noise(points, 5, seed=8).tobytes()
    assert count_samples(points, ScoreOptions(), default=4) == 4
    assert count_samples(points, ScoreOptions(num_samples=16), default=4) == 16
    with pytest.raises(OutOfRangeError, match="num_samples: 17; the model has 16 noise points"):
        count_samples(points, ScoreOptions(num_samples=17), default=4)


def test_scores_are_picked_like_an_array() -> None:
    """A slice, a mask or positions pick rows of every array and of the attributions."""
    scores = scored([-1.0, -2.0, -3.0], ScoreOptions(top_features=1))
    assert scores[1:].score.tolist() == [2.0, 3.0]
    assert scores[np.array([2, 0])].score.tolist() == [3.0, 1.0]
    assert len(scores[scores.score > 1.5].attributions) == 2
