"""Where rows lie in the latent space, which of its dimensions say something, and planes to see it in."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve_training.collapse import ACTIVE_VARIANCE

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Latents:
    """Rows' posteriors, both [rows, latent]."""

    mean: Array
    log_variance: Array

    @cached_property
    def kl(self) -> Array:
        """Each dimension's KL to N(0, 1), nats, a mean over the rows, [latent]. Source: Kingma and Welling 2014."""
        terms = 0.5 * (np.exp(self.log_variance) + self.mean**2 - 1 - self.log_variance)
        return np.asarray(terms.mean(0))

    @cached_property
    def variance(self) -> Array:
        """How far each dimension's mean varies over the rows, [latent]."""
        return np.asarray(self.mean.var(0))

    @property
    def active(self) -> NDArray[np.bool_]:
        """Which dimensions say something of the rows, [latent]. Source: Burda et al. 2016, section 5.2."""
        return np.asarray(self.variance > ACTIVE_VARIANCE)

    @property
    def by_activity(self) -> NDArray[np.intp]:
        """The dimensions, the one whose mean varies most first."""
        return np.argsort(-self.variance, kind="stable")


class Plane(NamedTuple):
    """Two directions of the latent space, and where the rows lie along them.

    points: [rows, 2]. origin: where the prior's mean lies, [2]. names: of the directions.
    """

    points: Array
    origin: Array
    names: tuple[str, str]


def most_active(latents: Latents, *, over: Latents | None = None) -> Plane:
    """Return the plane of the two dimensions whose means vary most, over the rows of `over` if some are given.

    Raises ValueError where there is one dimension.
    """
    if latents.mean.shape[1] < 2:
        raise ValueError("1 latent dimension; a plane takes 2")
    first, second = (int(dimension) for dimension in (over or latents).by_activity[:2])
    return Plane(latents.mean[:, [first, second]], np.zeros(2), (f"z{first}", f"z{second}"))


def principal(latents: Latents) -> Plane:
    """Return the plane of the means' first two principal components, its axes orthonormal, so that N(0, I) is round.

    A component's sign is chosen so that its largest weight is positive. Raises ValueError where there is one dimension.
    """
    if latents.mean.shape[1] < 2:
        raise ValueError("1 latent dimension; a plane takes 2")
    center = latents.mean.mean(0)
    values, vectors = np.linalg.eigh(np.cov(latents.mean.T, bias=True))
    axes = vectors[:, ::-1][:, :2]  # (latent, 2)
    largest = np.abs(axes).argmax(0)
    axes = axes * np.sign(axes[largest, [0, 1]])
    total = values.sum()
    shares = values[::-1][:2] / total if total > 0 else np.zeros(2)
    names = tuple(f"component {index}, {share:.0%} of variance" for index, share in enumerate(shares, 1))
    return Plane((latents.mean - center) @ axes, -center @ axes, (names[0], names[1]))


def prior_radius(share: float) -> float:
    """Return the radius within which that share of a two-dimensional standard normal lies."""
    return float(np.sqrt(-2 * np.log(1 - share)))
