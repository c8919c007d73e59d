"""Distances between rows: how far a row lies from those of others, and how far that is for rows like them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from vaeserve.signature import Signature
from vaeserve_training.features import Inputs, features_of

# Distances held at once.
DISTANCES_AT_ONCE = 2**24


class Space:
    """Where distances between rows are taken, the same for every model of them.

    Numbers are standard-scaled by the rows it is made of and clipped as the networks see them, categories one-hot,
    pixels intensities in [0, 1]. A missing value lies at its column's centre.
    """

    def __init__(self, signature: Signature, inputs: Inputs) -> None:
        self._features = features_of(signature, "standard")
        self._features.fit(inputs)
        self.width = self._features.width - sum(column.nullable for column in signature.columns)

    def points(self, inputs: Inputs, *, like: Inputs | None = None) -> Tensor:
        """Return raw `inputs` as points [rows, width]; what is missing in the rows of `like` is missing there too."""
        rows = self._features(inputs)
        if like is not None and rows.observed is not None:
            rows = rows._replace(observed=rows.observed * self._features(like).observed)
        points: Tensor = self._features.network_input(rows)[:, : self.width]
        return points


def nearest(points: Tensor, others: Tensor) -> Tensor:
    """Return each point's distance to the nearest of `others`, [points]."""
    return torch.cat([distances.amin(1) for distances in _distances(points, others)])


def nearest_others(points: Tensor, *, k: int) -> Tensor:
    """Return each point's distance to the `k`-th nearest of the others among `points`, [points]."""
    k = min(k + 1, len(points))  # the nearest is the point itself
    return torch.cat([distances.kthvalue(k, dim=1).values for distances in _distances(points, points)])


def within(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Return which points lie in a ball around one of `centres`, bool [points]; radii: [centres]."""
    return torch.cat([(distances <= radii).any(1) for distances in _distances(points, centres)])


def _distances(points: Tensor, others: Tensor) -> Iterator[Tensor]:
    """Yield Euclidean distances in parts, [points, others]."""
    # Exactly, so that equal points are 0 apart.
    return (
        torch.cdist(some, others, compute_mode="donot_use_mm_for_euclid_dist")
        for some in points.split(max(1, DISTANCES_AT_ONCE // len(others)))
    )
