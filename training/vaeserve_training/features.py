"""From raw inputs to what the networks and the likelihood see, and back.

A part of the model, so that the export puts it in the graphs, and training and serving can't differ.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from vaeserve.scores import RowStatus
from vaeserve.signature import Signature

# Past this a scaled value counts as this: its square, summed over features, stays within single precision.
LARGEST = 1e15
# A column that varies by less than this share of its size doesn't vary, in single precision.
RELATIVE_RESOLUTION = 1e-6

Inputs = Mapping[str, Tensor]


class Features(nn.Module, ABC):
    """The map between raw inputs and scaled features `x`, finite and `[rows, features]`."""

    features: int

    @abstractmethod
    def forward(self, inputs: Inputs) -> Tensor:
        """Return the scaled features; a value that can't be scaled counts as the mean, and the status tells."""

    @abstractmethod
    def status(self, inputs: Inputs) -> Tensor:
        """Return each row's `RowStatus`, int32 [rows]."""

    @abstractmethod
    def inverse(self, x: Tensor) -> dict[str, Tensor]:
        """Return scaled features in raw units, by input name."""


class TableFeatures(Features):
    """Columns of numbers, standardized with fixed means and scales, both [features]."""

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def fit(self, numeric: Tensor) -> None:
        """Set the means and scales to those of `numeric` [rows, features]; a constant column keeps scale 1."""
        numeric = numeric.double()
        mean, scale = numeric.mean(0), numeric.std(0, correction=0)
        constant = scale <= RELATIVE_RESOLUTION * mean.abs().clamp(min=1e-30)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(constant, 1.0, scale))

    @override
    def forward(self, inputs: Inputs) -> Tensor:
        raw = inputs["numeric"].to(self.mean.dtype)
        raw = torch.where(torch.isfinite(raw), raw, self.mean)
        return ((raw - self.mean) / self.scale).clamp(-LARGEST, LARGEST)  # (rows, features)

    @override
    def status(self, inputs: Inputs) -> Tensor:
        raw = inputs["numeric"]
        missing = torch.isnan(raw).to(torch.float32).amax(1)  # (rows,)
        infinite = torch.isinf(raw).to(torch.float32).amax(1)
        status = torch.where(
            infinite > 0,
            int(RowStatus.UNSCORABLE_NOT_FINITE),
            torch.where(missing > 0, int(RowStatus.UNSCORABLE_MISSING), int(RowStatus.OK)),
        )
        return status.to(torch.int32)

    @override
    def inverse(self, x: Tensor) -> dict[str, Tensor]:
        return {"numeric": x * self.scale + self.mean}


class ImageFeatures(Features):
    """Pixels of 0 to 255 as intensities in [0, 1], flattened; shape is [channels, height, width]."""

    white: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.features = math.prod(shape)
        # Carries the model's precision, which the integers that come in don't.
        self.register_buffer("white", torch.tensor(255.0))

    @override
    def forward(self, inputs: Inputs) -> Tensor:
        return inputs["image"].to(self.white.dtype).flatten(1) / self.white  # (rows, features)

    @override
    def status(self, inputs: Inputs) -> Tensor:
        return torch.zeros_like(inputs["image"][:, 0, 0, 0], dtype=torch.int32)

    @override
    def inverse(self, x: Tensor) -> dict[str, Tensor]:
        pixels = (x * self.white).round().clamp(0, 255).to(torch.uint8)
        return {"image": pixels.reshape(-1, *self.shape)}


def features_of(signature: Signature) -> Features:
    """Return the features that a signature's inputs make."""
    if signature.columns:
        return TableFeatures(len(signature.columns))
    return ImageFeatures(signature.inputs[0].shape[1:])
