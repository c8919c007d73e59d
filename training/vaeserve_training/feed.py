"""Training rows by their positions: scaled once where they fit, else as they are asked for."""

import torch
from torch import Tensor

from vaeserve_training.data import Dataset
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import Features, Rows, tensors_of

ROWS_AT_ONCE = 65_536
# Of float32: the value, whether it is there, and what its scaling adds to the density.
BYTES_A_VALUE = 12


class Feed:
    """The rows of a dataset as each member of an ensemble sees them, on a device.

    Rows of at most `memory_bytes`, scaled, live there; others are gathered and scaled with each call, to the same bits.
    """

    def __init__(self, dataset: Dataset, ensemble: Ensemble, *, device: torch.device, memory_bytes: float) -> None:
        self._dataset = dataset
        self._device = device
        self._features = [vae.features for vae in ensemble]
        # Members of one kind of scaling see the same rows.
        kinds = [type(getattr(features, "scaling", features)) for features in self._features]
        self._alike = [kinds.index(kind) for kind in kinds]
        distinct = sorted(set(self._alike))
        self._resident: dict[int, Rows] = {}
        if len(distinct) * BYTES_A_VALUE * len(dataset) * self._features[0].count <= memory_bytes:
            self._resident = {index: self._all(self._features[index]) for index in distinct}

    def __len__(self) -> int:
        return len(self._dataset)

    @property
    def members(self) -> int:
        """How many members see the rows."""
        return len(self._features)

    def take(self, positions: Tensor) -> Rows:
        """Return the rows at `positions` [members, rows], each [members, rows, features]."""
        rows = [self._take(alike, some) for alike, some in zip(self._alike, positions, strict=True)]
        if any(part.log_jacobian is not None for part in rows):
            rows = [_with_log_jacobian(part) for part in rows]
        return Rows.joined(rows, torch.stack)

    def all_of(self, index: int) -> Rows:
        """Return all rows as a member sees them; for datasets that fit."""
        alike = self._alike[index]
        return self._resident[alike] if self._resident else self._all(self._features[alike])

    def _take(self, alike: int, positions: Tensor) -> Rows:
        if self._resident:
            return self._resident[alike].pick(positions)
        return self._scale(self._features[alike], positions.cpu())

    def _all(self, features: Features) -> Rows:
        parts = [self._scale(features, some) for some in torch.arange(len(self._dataset)).split(ROWS_AT_ONCE)]
        return Rows.joined(parts, torch.cat)

    @torch.no_grad()
    def _scale(self, features: Features, positions: Tensor) -> Rows:
        inputs = tensors_of(self._dataset.signature, self._dataset.take(positions.numpy()))
        rows: Rows = features({name: tensor.to(self._device) for name, tensor in inputs.items()})
        return rows


def _with_log_jacobian(rows: Rows) -> Rows:
    return rows if rows.log_jacobian is not None else rows._replace(log_jacobian=torch.zeros_like(rows.x))
