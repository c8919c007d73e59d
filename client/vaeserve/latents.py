"""Points of the latent space to decode: draws from the prior, and the path between two latents."""

from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import InvalidInputError, OutOfRangeError
from vaeserve.scores import refuse_outside

# Past this a latent is no draw of any posterior; the decoder's outputs could overflow.
LARGEST_LATENT = 1e3
# Philox's normal numbers in single precision end at 8.3: no draw lies past LARGEST_LATENT.
LARGEST_TEMPERATURE = 100
# A path is computed whole.
MOST_STEPS = 1_000_000

# Radians. Directions that are closer, or as close to opposite, are so by rounding to single precision.
_LEAST_ANGLE = 1e-6


class Interpolation(Enum):
    """How a path goes from one latent to another.

    LINEAR: straight. SPHERICAL: along the great circle, so that it keeps the norm of ends that have the same.
    """

    LINEAR = "linear"
    SPHERICAL = "spherical"


def check_draws(count: int, *, seed: int, temperature: float) -> None:
    """Raise InvalidInputError, naming it, for a number that `prior_draws` can't take."""
    refuse_outside("count", count, int, 0, 2**32 - 1)
    refuse_outside("seed", seed, int, 0, 2**64 - 1)
    refuse_outside("temperature", temperature, float, 0, LARGEST_TEMPERATURE)


def check_path(steps: int, method: Interpolation) -> None:
    """Raise InvalidInputError, naming it, for what `path` can't take."""
    refuse_outside("steps", steps, int, 2, MOST_STEPS)
    if not isinstance(method, Interpolation):
        raise InvalidInputError(f"method: {method!r}; expected Interpolation.LINEAR or Interpolation.SPHERICAL")


def check_latents(latents: NDArray[Any], latent_dim: int) -> NDArray[np.float32]:
    """Return `latents` [rows, latent] as a decoder takes them.

    Raises InvalidInputError for another form, OutOfRangeError for such as lie past LARGEST_LATENT.
    """
    if latents.ndim != 2 or latents.shape[1] != latent_dim or latents.dtype.kind not in "fiu":
        raise InvalidInputError(
            f"latents: {latents.dtype} of shape {list(latents.shape)}; the model takes numbers of shape "
            f"[rows, {latent_dim}]"
        )
    return _near("latents", latents)


def prior_draws(count: int, latent_dim: int, *, seed: int = 0, temperature: float = 1.0) -> NDArray[np.float32]:
    """Return draws from the prior, `temperature` times N(0, I): [count, latent].

    By NumPy's Philox: a seed has the same bits always, and the first rows of a larger count are those of a smaller one.
    Raises InvalidInputError, naming it, for a number out of its range.
    """
    draws = list(prior_batches(count, latent_dim, seed=seed, temperature=temperature, rows=max(count, 1)))
    return draws[0] if draws else np.empty((0, latent_dim), np.float32)


def prior_batches(
    count: int, latent_dim: int, *, seed: int, temperature: float, rows: int
) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of `prior_draws` in order, at most `rows` at a time, for counts larger than memory."""
    check_draws(count, seed=seed, temperature=temperature)
    generator = np.random.Generator(np.random.Philox(seed))
    for start in range(0, count, rows):
        shape = min(rows, count - start), latent_dim
        yield np.float32(temperature) * generator.standard_normal(shape, dtype=np.float32)


def one_latent(latent: NDArray[Any], name: str, latent_dim: int | None = None) -> NDArray[np.float32]:
    """Return a latent given as [latent] or [1, latent] as [latent], of `latent_dim` numbers if that is known.

    Raises InvalidInputError for another form, OutOfRangeError past LARGEST_LATENT, both naming `name`.
    """
    numbers = latent.shape[-1] if latent.ndim and latent.size else 0
    if latent.ndim > 2 or not numbers or latent.size != numbers or latent.dtype.kind not in "fiu":
        raise InvalidInputError(
            f"{name}: {latent.dtype} of shape {list(latent.shape)}; expected the numbers of one latent, "
            f"[{latent_dim or 'latent'}]"
        )
    if latent_dim not in (None, numbers):
        raise InvalidInputError(f"{name}: {numbers} numbers; the model's latents have {latent_dim}")
    return _near(name, latent.reshape(-1))


def path(
    start: NDArray[Any], end: NDArray[Any], *, steps: int, method: Interpolation = Interpolation.LINEAR
) -> NDArray[np.float32]:
    """Return `steps` latents from `start` to `end`, each [latent] or [1, latent], evenly spaced: [steps, latent].

    The first and the last are the ends' own bits, in single precision. SPHERICAL is White, Sampling Generative
    Networks, 2016: `(sin((1 - t) w) start + sin(t w) end) / sin w`, `w` the angle between the ends. It is LINEAR, its
    limit, for ends that point the same way. Where they point opposite ways, or one is 0 everywhere, no great circle is
    the shortest, and that is an InvalidInputError; so are fewer than two steps, more than MOST_STEPS, and ends of
    different lengths. OutOfRangeError for an end past LARGEST_LATENT.
    """
    check_path(steps, method)
    first, last = one_latent(start, "start"), one_latent(end, "end")
    if first.shape != last.shape:
        raise InvalidInputError(f"end: {last.size} numbers; start has {first.size}")
    weights = np.linspace(0.0, 1.0, steps)[:, None]  # (steps, 1)
    way = _linear if method is Interpolation.LINEAR else _spherical
    latents = way(first.astype(np.float64), last.astype(np.float64), weights).astype(np.float32)  # (steps, latent)
    latents[0], latents[-1] = first, last
    return latents


def _linear(start: NDArray[np.float64], end: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    return (1 - weights) * start + weights * end


def _spherical(
    start: NDArray[np.float64], end: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    u, v = _direction(start, "start"), _direction(end, "end")
    # Exact near 0 and pi too, where the arc cosine of a product isn't.
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    if angle < _LEAST_ANGLE:
        return _linear(start, end, weights)
    if np.pi - angle < _LEAST_ANGLE:
        raise InvalidInputError("end: opposite to start; expected another direction, or the linear method")
    parts = np.sin((1 - weights) * angle) * start, np.sin(weights * angle) * end  # each (steps, latent)
    latents: NDArray[np.float64] = (parts[0] + parts[1]) / np.sin(angle)
    return latents


def _direction(latent: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    if not latent.any():
        raise InvalidInputError(f"{name}: 0 everywhere; expected a direction, or the linear method")
    direction: NDArray[np.float64] = latent / np.linalg.norm(latent)
    return direction


def _near(name: str, latents: NDArray[Any]) -> NDArray[np.float32]:
    # Not by the absolute value: the least integer has none.
    if not ((latents >= -LARGEST_LATENT) & (latents <= LARGEST_LATENT)).all():
        raise OutOfRangeError(f"{name}: not all of them lie within +-{LARGEST_LATENT:g}; expected finite numbers there")
    return latents.astype(np.float32, copy=False)
