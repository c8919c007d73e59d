"""What a model's draws and reconstructions are held against: the rows themselves."""

import numpy as np
import torch
from torch import Tensor

from vaeserve.errors import DataError
from vaeserve_training.data import Dataset, Split
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.evaluate import scorable_rows
from vaeserve_training.features import Inputs, tensors_of
from vaeserve_training.sweep.neighbours import Space, nearest
from vaeserve_training.sweep.realism import Realism, realism

# Rows that distances are taken to and from.
TRAIN_ROWS = 5000
HELD_OUT_ROWS = 1000


class Yardstick:
    """Normal rows of a split, raw and as points of a `Space`: some trained on, some held out for calibration and test.

    train_points: [rows, width]. held_out: raw; points: the same as points, [rows, width].
    typical: how far a held-out row lies from the nearest training row, a mean.
    Raises DataError if `ensemble` can't score any held-out row.
    """

    def __init__(self, parts: Split, ensemble: Ensemble) -> None:
        signature = parts.train.signature
        self.train = tensors_of(signature, parts.train[:TRAIN_ROWS].inputs)
        self.held_out = _joined([_normal(part, ensemble) for part in (parts.test, parts.calibration)])
        if not len(next(iter(self.held_out.values()))):
            raise DataError(f"{parts.test.name}: no held-out row is normal and can be scored; expected one or more")
        self.space = Space(signature, self.train)
        self.train_points = self.space.points(self.train)
        self.points = self.space.points(self.held_out)
        self.typical = float(nearest(self.points, self.train_points).double().mean())

    def remoteness(self, points: Tensor) -> Tensor:
        """Return how far points [..., width] lie from their nearest training row, in typical distances, [...].

        1 is as far as a held-out row lies, and so on the data's manifold as far as training rows show it; not a number
        where held-out rows are training rows over again.
        """
        distances = nearest(points.flatten(0, -2), self.train_points).reshape(points.shape[:-1])
        return distances / self.typical if self.typical else torch.full_like(distances, torch.nan)

    @property
    def within_reach(self) -> Realism:
        """How like the held-out rows as many training rows are, which no model can be expected to pass."""
        return realism(self.train_points[: len(self.points)], self.points)


def _normal(dataset: Dataset, ensemble: Ensemble) -> dict[str, Tensor]:
    scorable = scorable_rows(ensemble, dataset)
    if dataset.anomalous is not None:
        scorable &= ~dataset.anomalous
    return tensors_of(dataset.signature, dataset[np.flatnonzero(scorable)].inputs)


def _joined(parts: list[dict[str, Tensor]]) -> Inputs:
    return {name: torch.cat([part[name] for part in parts])[:HELD_OUT_ROWS] for name in parts[0]}
