"""What the decoder makes of latents: of rows' own, of the way between two, along an axis, of draws from the prior."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from string import ascii_uppercase
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vaeserve.latents import LARGEST_LATENT, path, prior_draws
from vaeserve.signature import Signature
from vaeserve_training.data import Arrays
from vaeserve_training.report.subject import Model

Array = NDArray[np.float64]
STEPS = 9
# How far along an axis, in standard deviations of the prior.
SPAN = 3.0
# The largest that a column of bits can have: a rare bit would be many deviations away.
LEAST_BINARY_SPREAD = 0.5


class Way(NamedTuple):
    """Points of the latent space in a line, and what the decoder makes of them.

    at: where each is, from 0 to 1 between two rows, or along an axis, [steps].
    """

    name: str
    at: Array
    outputs: Arrays


def between(model: Model, ends: NDArray[np.float32]) -> list[Way]:
    """Return the straight way from each of `ends` [ends, latent] to the next, as far out as a decoder takes latents."""
    ways = []
    ends = ends.clip(-LARGEST_LATENT, LARGEST_LATENT)
    for (start, first), (end, last) in pairwise(zip(ends, ascii_uppercase, strict=False)):
        latents = path(start, end, steps=STEPS)
        ways.append(Way(f"{first} to {last}", np.linspace(0, 1, STEPS), model.decode(latents)))
    return ways


def along(model: Model, dimensions: Sequence[int]) -> list[Way]:
    """Return the way along each of some axes through 0, from -SPAN to SPAN."""
    ways = []
    for dimension in dimensions:
        latents = np.zeros((STEPS, model.latent_dim), np.float32)
        latents[:, dimension] = at = np.linspace(-SPAN, SPAN, STEPS)
        ways.append(Way(f"z{dimension}", at, model.decode(latents)))
    return ways


def samples(model: Model, count: int) -> Arrays:
    """Return what the decoder makes of the first draws from the prior, by the seed 0."""
    return model.decode(prior_draws(count, model.latent_dim, seed=0))


def far_apart(points: Array, count: int, *, first: int) -> list[int]:
    """Return positions of points [points, latent]: the first, then each time the one farthest from all so far.

    Source: Gonzalez, Clustering to Minimize the Maximum Intercluster Distance, 1985.
    """
    chosen = [first]
    nearest = np.linalg.norm(points - points[first], axis=1)
    while len(chosen) < min(count, len(points)):
        farthest = int(nearest.argmax())
        if nearest[farthest] == 0:  # all lie on one point
            break
        chosen.append(farthest)
        nearest = np.minimum(nearest, np.linalg.norm(points - points[farthest], axis=1))
    return chosen


@dataclass(frozen=True)
class Scale:
    """A table's numbers as deviations from what is usual: (value - center) / spread, each [numeric columns]."""

    names: tuple[str, ...]
    center: Array
    spread: Array

    @classmethod
    def of(cls, signature: Signature, inputs: Arrays) -> Self:
        """Return the medians and standard deviations of rows' numeric and binary columns, as far as there are any.

        Where a few values are huge, the spread is that of the middle nine tenths.
        """
        names = tuple(column.name for column in signature.numeric_columns)
        values = np.asarray(inputs.get("numeric", np.empty((1, 0))), np.float64)
        values = np.where(np.isfinite(values), values, np.nan)
        known = ~np.isnan(values).all(0)
        filled = np.where(known, values, 0)
        low, center, high = np.nanquantile(filled, (0.05, 0.5, 0.95), axis=0)
        spread = np.where(high > low, (high - low) / 3.29, np.nanstd(filled, axis=0))  # 3.29 deviations, of a normal
        binary = [column.kind == "binary" for column in signature.numeric_columns]
        least = np.where(binary, LEAST_BINARY_SPREAD, 0.0)
        spread = np.maximum(spread, least)
        return cls(names, center, np.where(spread > 0, spread, 1.0))

    def __call__(self, inputs: Arrays) -> Array:
        """Return deviations, [rows, numeric columns], NaN for what is missing."""
        return np.asarray((inputs["numeric"] - self.center) / self.spread)
