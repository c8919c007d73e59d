"""Draws from the prior, and paths through the latent space."""

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vaeserve.errors import InvalidInputError, OutOfRangeError
from vaeserve.latents import (
    LARGEST_LATENT,
    LARGEST_TEMPERATURE,
    Interpolation,
    check_latents,
    path,
    prior_batches,
    prior_draws,
)

NUMBERS = st.floats(-1000, 1000, width=32)
LATENT = arrays(np.float32, 5, elements=NUMBERS)
SEEDS = st.integers(0, 2**64 - 1)
METHODS = st.sampled_from(Interpolation)


def angle_between(start: np.ndarray, end: np.ndarray) -> float:
    """Return the angle between two latents, radians."""
    u, v = (latent.astype(np.float64) / np.linalg.norm(latent.astype(np.float64)) for latent in (start, end))
    return float(np.arccos(np.clip(u @ v, -1, 1)))


def on_an_arc(start: np.ndarray, end: np.ndarray) -> bool:
    """Tell whether a great circle joins two latents, by a good margin."""
    return bool(start.any() and end.any()) and 0.01 < angle_between(start, end) < np.pi - 0.01


@given(LATENT, LATENT, st.integers(2, 20), METHODS)
def test_a_path_has_its_ends_bits(start: np.ndarray, end: np.ndarray, steps: int, method: Interpolation) -> None:
    """The first and the last latent are the ends', bit by bit, whichever the method."""
    assume(method is Interpolation.LINEAR or on_an_arc(start, end))
    latents = path(start, end, steps=steps, method=method)
    assert latents.shape == (steps, 5)
    assert latents.dtype == np.float32
    assert latents[0].tobytes() == start.tobytes()
    assert latents[-1].tobytes() == end.tobytes()


@given(LATENT, LATENT, st.integers(2, 20))
def test_a_linear_path_is_affine(start: np.ndarray, end: np.ndarray, steps: int) -> None:
    """A linear path's latents are evenly spaced on the straight line."""
    t = np.arange(steps)[:, None] / (steps - 1)
    expected = start.astype(np.float64) + t * (end.astype(np.float64) - start)
    np.testing.assert_allclose(path(start, end, steps=steps), expected, rtol=1e-6, atol=1e-4)


@given(LATENT, LATENT, st.integers(2, 20))
def test_a_spherical_path_keeps_the_norm_of_ends_that_have_the_same(
    start: np.ndarray, end: np.ndarray, steps: int
) -> None:
    """Between ends of one norm every latent has that norm, at evenly growing angles from the start."""
    assume(on_an_arc(start, end))
    start, end = (100 * latent / np.linalg.norm(latent.astype(np.float64)) for latent in (start, end))
    latents = path(start, end, steps=steps, method=Interpolation.SPHERICAL).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(latents, axis=1), 100, rtol=1e-5)
    whole = angle_between(start, end)
    angles = [angle_between(start, latent) for latent in latents]
    np.testing.assert_allclose(angles, np.linspace(0, whole, steps), atol=1e-3)


@given(LATENT, LATENT, METHODS)
def test_a_path_backwards_is_the_path_reversed(start: np.ndarray, end: np.ndarray, method: Interpolation) -> None:
    """From the end to the start lie the same latents the other way round."""
    assume(method is Interpolation.LINEAR or on_an_arc(start, end))
    forth, back = path(start, end, steps=7, method=method), path(end, start, steps=7, method=method)
    np.testing.assert_allclose(forth, back[::-1], rtol=1e-5, atol=1e-4)


@given(LATENT, st.floats(0.125, 1, width=32))
def test_a_spherical_path_of_one_direction_is_the_linear_one(start: np.ndarray, scale: float) -> None:
    """Ends that point the same way, or are the same, have a straight path and no division by 0."""
    assume(np.abs(start).max() > 0.01)
    end = start * np.float32(scale)
    spherical = path(start, end, steps=9, method=Interpolation.SPHERICAL)
    assert spherical.tobytes() == path(start, end, steps=9).tobytes()


def test_a_spherical_path_meets_the_linear_one_where_directions_do() -> None:
    """Just past the angle that counts as one direction, the great circle is as straight as the line."""
    start, end = np.array([1.0, 0.0]), np.array([2.0, 1e-5])
    np.testing.assert_allclose(
        path(start, end, steps=9, method=Interpolation.SPHERICAL), path(start, end, steps=9), rtol=1e-5, atol=1e-10
    )


@pytest.mark.parametrize(
    ("start", "end", "options", "message"),
    [
        (np.ones(3), -2 * np.ones(3), {"method": Interpolation.SPHERICAL}, "end: opposite to start; expected another"),
        (np.zeros(3), np.ones(3), {"method": Interpolation.SPHERICAL}, "start: 0 everywhere; expected a direction"),
        (np.ones(3), np.zeros(3), {"method": Interpolation.SPHERICAL}, "end: 0 everywhere"),
        (np.ones(3), np.ones(4), {}, "end: 4 numbers; start has 3"),
        (np.ones((2, 3)), np.ones(3), {}, r"start: float64 of shape \[2, 3\]; expected the numbers of one latent"),
        (np.ones(3), np.array(["a"] * 3), {}, r"end: <U1 of shape \[3\]; expected the numbers of one latent"),
        (np.ones(3), np.array(1.0), {}, r"end: float64 of shape \[\]; expected"),
        (np.ones(0), np.ones(0), {}, r"start: float64 of shape \[0\]; expected"),
        (np.ones(3), np.ones(3), {"steps": 1}, "steps: 1; expected a whole number from 2"),
        (np.ones(3), np.ones(3), {"steps": 2.0}, "steps: 2.0; expected a whole number"),
        (np.ones(3), np.ones(3), {"method": "linear"}, "method: 'linear'; expected Interpolation.LINEAR or"),
    ],
)
def test_a_path_that_cannot_be_is_refused(start: Any, end: Any, options: dict[str, Any], message: str) -> None:
    """What has no path is an InvalidInputError that names the end or the option."""
    with pytest.raises(InvalidInputError, match=message):
        path(start, end, **({"steps": 5} | options))


@pytest.mark.parametrize("far", [np.nan, np.inf, -1001.0])
def test_latents_that_are_far_out_are_out_of_range(far: float) -> None:
    """An end of a path, or a latent to decode, that isn't finite and near is an OutOfRangeError."""
    with pytest.raises(OutOfRangeError, match="end: not all of them lie within .-1000"):
        path(np.zeros(2), np.array([0, far]), steps=3)
    with pytest.raises(OutOfRangeError, match="latents: not all of them lie within .-1000"):
        check_latents(np.array([[0, far]]), 2)


def test_the_least_integer_is_far_out_too() -> None:
    """An integer whose absolute value overflows is out of range as any other."""
    with pytest.raises(OutOfRangeError, match="latents: not all"):
        check_latents(np.array([[0, np.iinfo(np.int64).min]]), 2)
    assert check_latents(np.array([[-1000, 1000]], np.int32), 2).tolist() == [[-1000, 1000]]


@given(st.integers(0, 40), st.integers(1, 9), SEEDS)
def test_a_seed_draws_the_same_bits_always(count: int, latent_dim: int, seed: int) -> None:
    """A seed's draws have the same bits again, in batches of any size, and as the beginning of a larger count."""
    draws = prior_draws(count, latent_dim, seed=seed)
    assert draws.shape == (count, latent_dim)
    assert draws.dtype == np.float32
    assert draws.tobytes() == prior_draws(count, latent_dim, seed=seed).tobytes()
    assert draws.tobytes() == prior_draws(count + 3, latent_dim, seed=seed)[:count].tobytes()
    batches = list(prior_batches(count, latent_dim, seed=seed, temperature=1.0, rows=7))
    assert b"".join(batch.tobytes() for batch in batches) == draws.tobytes()
    assert all(len(batch) <= 7 for batch in batches)


@given(SEEDS, SEEDS)
def test_seeds_differ_from_each_other(one: int, other: int) -> None:
    """Two seeds draw different numbers."""
    assume(one != other)
    assert (prior_draws(5, 3, seed=one) != prior_draws(5, 3, seed=other)).all()


@given(SEEDS, st.floats(0, 100))
def test_temperature_scales_the_draws(seed: int, temperature: float) -> None:
    """A temperature multiplies the draws, and takes none of them past what a decoder takes."""
    expected = np.float32(temperature) * prior_draws(50, 3, seed=seed)
    draws = prior_draws(50, 3, seed=seed, temperature=temperature)
    assert draws.tobytes() == expected.tobytes()
    assert np.abs(draws).max() <= LARGEST_LATENT


def test_draws_are_standard_normal() -> None:
    """Many draws have the mean, the variance and the kurtosis of N(0, 1), and none is past what the largest allows."""
    draws = prior_draws(100_000, 4).astype(np.float64)
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.02)
    np.testing.assert_allclose(draws.var(axis=0), 1, atol=0.02)
    np.testing.assert_allclose((draws**4).mean(axis=0), 3, atol=0.2)
    assert np.abs(draws).max() * LARGEST_TEMPERATURE < LARGEST_LATENT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": -1}, "count: -1; expected a whole number from 0 to 4294967295"),
        ({"count": 2.5}, "count: 2.5; expected a whole number"),
        ({"seed": -1}, "seed: -1; expected a whole number from 0"),
        ({"seed": 2**64}, "seed: 18446744073709551616; expected"),
        ({"temperature": -0.1}, "temperature: -0.1; expected a number from 0 to 100"),
        ({"temperature": 100.5}, "temperature: 100.5; expected"),
        ({"temperature": np.nan}, "temperature: nan; expected"),
        ({"temperature": np.inf}, "temperature: inf; expected"),
        ({"temperature": "hot"}, "temperature: 'hot'; expected a number"),
    ],
)
def test_draws_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    """A number out of its range is an InvalidInputError that names it."""
    with pytest.raises(InvalidInputError, match=message):
        prior_draws(**({"count": 3, "latent_dim": 2} | options))
