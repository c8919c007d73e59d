"""The decoder's distributions p(x|z), with exact log-densities in nats.

They use only operators whose results don't depend on a row's place in its batch (see `vaeserve_export.operators`),
for the export traces them as they are.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override


class Likelihood(nn.Module, ABC):
    """A distribution of the scaled features, independent given the decoder's `output` [..., features]."""

    name: str

    @abstractmethod
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        """Return each feature's log-density at `x`, nats, [..., features]."""

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Return the mean, [..., features]."""

    @abstractmethod
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw from the distribution, [..., features]."""

    @abstractmethod
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        """Return the distribution's parameters by their usual names, each [..., features]."""


class Gaussian(Likelihood):
    """N(loc, scale^2) with a learned scale: for numbers of any range.

    The scale is held between `floor` and `ceiling`, smoothly, so that a nearly constant feature can't take over the
    sum. Source: Rybkin et al., Simple and Effective VAE Training with Calibrated Decoders, 2021, section 3.2.
    """

    name = "gaussian"

    def __init__(self, scales: int, *, floor: float, ceiling: float = math.exp(2.0)) -> None:
        super().__init__()
        self.lowest, self.highest = math.log(floor), math.log(ceiling)
        start = (0.0 - self.lowest) / (self.highest - self.lowest)
        self.raw_scale = nn.Parameter(torch.full((scales,), math.log(start / (1 - start))))

    @property
    def log_scale(self) -> Tensor:
        """The logarithm of the scale, [features], or [1] where the features share it."""
        return self.lowest + (self.highest - self.lowest) * torch.sigmoid(self.raw_scale)

    @override
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        log_scale = self.log_scale
        standardized = (x - output) * torch.exp(-log_scale)
        return -0.5 * standardized * standardized - log_scale - 0.5 * math.log(2 * math.pi)

    @override
    def mean(self, output: Tensor) -> Tensor:
        return output

    @override
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        return output + torch.exp(self.log_scale) * noise

    @override
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        return {"loc": output, "scale": torch.exp(self.log_scale) + torch.zeros_like(output)}


class Bernoulli(Likelihood):
    """Bernoulli with `logits`: for binary features, and the textbooks' cross-entropy for grey levels in [0, 1].

    What lies outside [0, 1] has no density here; it is given that of the nearest value, less `OUTSIDE` nats a unit,
    so that it stays finite and ranks as the anomaly it is.
    """

    name = "bernoulli"
    OUTSIDE = 1000.0

    @override
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        inside = x.clamp(0, 1)
        return inside * output - softplus(output) - self.OUTSIDE * (x - inside).abs()

    @override
    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    @override
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(torch.sigmoid(output), generator=generator)

    @override
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        return {"logits": output}


def softplus(x: Tensor) -> Tensor:
    """Return `log(1 + exp(x))` without a logarithm, to about 1e-8 of its value.

    ONNX Runtime's Log and Softplus give a row other bits in another batch. With u = exp(-|x|) and t = u / (2 + u),
    log(1 + u) = 2 atanh(t), and t <= 1/3, where the series of atanh is short.
    """
    u = torch.exp(-x.abs())
    t = u / (2 + u)
    square = t * t
    series = torch.full_like(t, 1 / 17)
    for odd in (15, 13, 11, 9, 7, 5, 3, 1):
        series = series * square + 1 / odd
    return x.clamp(min=0) + 2 * t * series
