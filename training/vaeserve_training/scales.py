"""The scales of location-scale likelihoods, learned or fixed."""

import math

import torch
from torch import Tensor, nn

LARGEST_SCALE = math.exp(2.0)
# How much faster a learned scale moves than a weight: at their pace it would take thousands of steps to its floor.
GAIN = 4.0


class LearnedScale(nn.Module):
    """A learned scale for each feature, or one `shared` by all, held smoothly between `floor` and `ceiling`.

    So a nearly constant feature can't take over the sum. It starts at 1. Source: Rybkin et al., Simple and Effective
    VAE Training with Calibrated Decoders, 2021, section 3.2.
    """

    def __init__(self, features: int, *, floor: float, ceiling: float, shared: bool) -> None:
        if not 0 < floor < 1 < ceiling:
            raise ValueError(f"a scale between {floor:g} and {ceiling:g}; expected 0 < floor < 1 < ceiling")
        super().__init__()
        self.lowest, self.highest = math.log(floor), math.log(ceiling)
        self.raw = nn.Parameter(torch.full((1 if shared else features,), math.log(-self.lowest / self.highest) / GAIN))

    def forward(self) -> Tensor:
        """Return the logarithm of the scale, [features] or [1]."""
        return self.lowest + (self.highest - self.lowest) * torch.sigmoid(GAIN * self.raw)


class FixedScale(nn.Module):
    """A scale that isn't learned."""

    log_scale: Tensor

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("log_scale", torch.tensor([math.log(scale)]), persistent=False)

    def forward(self) -> Tensor:
        """Return the logarithm of the scale, [1]."""
        return self.log_scale
