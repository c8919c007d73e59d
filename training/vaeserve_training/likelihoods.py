"""The decoder's distributions p(x|z), with exact log-densities in nats.

They use only operators whose results don't depend on a row's place in its batch (see `vaeserve_export.operators`),
for the export traces them as they are.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from vaeserve_training.logarithms import log, log1p, log_sinhc, polynomial, softplus
from vaeserve_training.scales import LARGEST_SCALE, FixedScale, LearnedScale
from vaeserve_training.sums import mean_over_samples

# Nats that a value loses for each unit that it lies outside the range of its likelihood.
OUTSIDE = 1000.0
LARGEST_LOGIT = 60.0


class Likelihood(nn.Module, ABC):
    """A distribution of `features` scaled features, independent given the decoder's `output` [..., outputs]."""

    name: str

    def __init__(self, features: int, *, outputs: int | None = None) -> None:
        super().__init__()
        self.features = features
        self.outputs = features if outputs is None else outputs

    @abstractmethod
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        """Return each feature's log-density at `x` [..., features], nats, [..., features]."""

    def mean_log_density(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the mean over the samples of each feature's log-density, nats, [rows, features].

        x: [rows, features]. output: [rows, samples, outputs].
        """
        return mean_over_samples(self.log_density(x[:, None], output))

    @abstractmethod
    def mean(self, output: Tensor) -> Tensor:
        """Return the mean, of categories the likeliest, [..., features]."""

    @abstractmethod
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Draw from the distribution, [..., features]."""

    @abstractmethod
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        """Return the distribution's parameters by their usual names, each [..., features] or [..., outputs]."""


class LocationScale(Likelihood):
    """A distribution whose location is the decoder's output, with a scale for each feature or one for all."""

    def __init__(self, features: int, scale: LearnedScale | FixedScale) -> None:
        super().__init__(features)
        self.scale = scale

    @property
    def log_scale(self) -> Tensor:
        """The logarithm of the scale, [features], or [1] where the features share it."""
        log_scale: Tensor = self.scale()
        return log_scale

    @override
    def mean(self, output: Tensor) -> Tensor:
        return output

    @override
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        return {"loc": output, "scale": torch.exp(self.log_scale) + torch.zeros_like(output)}


class _Normal(LocationScale):
    @override
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        log_scale = self.log_scale
        standardized = (x - output) * torch.exp(-log_scale)
        return -0.5 * standardized * standardized - (log_scale + 0.5 * math.log(2 * math.pi))

    @override
    def mean_log_density(self, x: Tensor, output: Tensor) -> Tensor:
        # What the samples share stands outside their mean: in a graph of many samples it would be most of the work.
        log_scale = self.log_scale
        residual = x[:, None] - output
        precision = torch.exp(-2 * log_scale)
        return -0.5 * precision * mean_over_samples(residual * residual) - (log_scale + 0.5 * math.log(2 * math.pi))

    @override
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return output + torch.exp(self.log_scale) * noise


class Gaussian(_Normal):
    """N(loc, scale^2) with a learned scale, `shared` by all features or one for each.

    For numbers that noise spreads evenly, and for images; the sigma-VAE of Rybkin et al. 2021.
    """

    name = "gaussian"

    def __init__(self, features: int, *, floor: float, ceiling: float = LARGEST_SCALE, shared: bool = False) -> None:
        super().__init__(features, LearnedScale(features, floor=floor, ceiling=ceiling, shared=shared))


class FixedGaussian(_Normal):
    """N(loc, scale^2) with the scale given.

    For comparison with the textbooks' squared error, which it is, halved and less a constant, at scale 1.
    """

    name = "gaussian_fixed"

    def __init__(self, features: int, *, scale: float = 1.0) -> None:
        super().__init__(features, FixedScale(scale))


class StudentT(LocationScale):
    """Student's t with `degrees` of freedom around a location, with a learned scale.

    For the columns of most tables: its heavy tails keep one odd value from drowning all others.
    """

    name = "student_t"

    def __init__(
        self,
        features: int,
        *,
        degrees: float = 10.0,
        floor: float,
        ceiling: float = LARGEST_SCALE,
        shared: bool = False,
    ) -> None:
        super().__init__(features, LearnedScale(features, floor=floor, ceiling=ceiling, shared=shared))
        self.degrees = degrees
        self.log_normalizer = (
            math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2) + 0.5 * math.log(degrees * math.pi)
        )

    @override
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        log_scale = self.log_scale
        standardized = (x - output) * torch.exp(-log_scale)
        tail = log1p(standardized * standardized / self.degrees)
        return -0.5 * (self.degrees + 1) * tail - (log_scale + self.log_normalizer)

    @override
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        # Source: Bailey, Polar Generation of Random Variates with the t-Distribution, 1994, eq. 2.
        radius = torch.expm1(-2 / self.degrees * torch.log(1 - _uniform_like(output, generator)))
        noise = torch.sqrt(self.degrees * radius) * torch.cos(2 * math.pi * _uniform_like(output, generator))
        return output + torch.exp(self.log_scale) * noise

    @override
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        return {"degrees": torch.full_like(output, self.degrees), **super().parameters_of(output)}


class DiscretizedLogistic(LocationScale):
    """A logistic distribution rounded to the grid `k / (levels - 1)` of [0, 1], its tails to the ends.

    For images of `levels` intensities, where a probability of each is wanted, not a density: nats are those of a
    discrete value. Source: Salimans et al., PixelCNN++, 2017, eq. 2.
    """

    name = "discretized_logistic"

    def __init__(
        self,
        features: int,
        *,
        levels: int = 256,
        floor: float,
        ceiling: float = LARGEST_SCALE,
        shared: bool = False,
    ) -> None:
        super().__init__(features, LearnedScale(features, floor=floor, ceiling=ceiling, shared=shared))
        self.levels = levels

    @override
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        inside, penalty = _within_unit(x)
        log_scale = self.log_scale
        per_scale, bin_width = torch.exp(-log_scale), 1 / (self.levels - 1)
        is_first, is_last = inside < bin_width / 2, inside > 1 - bin_width / 2
        upper = (inside + bin_width / 2 - output) * per_scale
        lower = (inside - bin_width / 2 - output) * per_scale
        # log(sigmoid(u) - sigmoid(l)) = -softplus(-u) - softplus(l) + log(1 - exp(l - u))
        width = bin_width * per_scale
        log_between = math.log(bin_width) - log_scale - width / 2 + log_sinhc(width)
        return (
            torch.where(is_first | is_last, 0.0, log_between)
            - torch.where(is_last, 0.0, softplus(-upper))
            - torch.where(is_first, 0.0, softplus(lower))
            - penalty
        )

    @override
    def mean(self, output: Tensor) -> Tensor:
        return output.clamp(0, 1)

    @override
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.logit(_uniform_like(output, generator), eps=torch.finfo(output.dtype).tiny)
        value = (output + torch.exp(self.log_scale) * noise).clamp(0, 1)
        return torch.round(value * (self.levels - 1)) / (self.levels - 1)


class Bernoulli(Likelihood):
    """Bernoulli with `logits`: for binary data, and the cross-entropy of the textbooks for grey levels in [0, 1].

    What lies outside [0, 1] has no density here; it is given that of the nearest value, less `OUTSIDE` nats a unit,
    so that it stays finite and ranks as the anomaly it is.
    """

    name = "bernoulli"

    @override
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        inside, penalty = _within_unit(x)
        return inside * output - softplus(output) - penalty

    @override
    def mean(self, output: Tensor) -> Tensor:
        return torch.sigmoid(output)

    @override
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(torch.sigmoid(output), generator=generator)

    @override
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        return {"logits": output}


class ContinuousBernoulli(Likelihood):
    """The density on [0, 1] proportional to exp(x logits): for grey levels, which Bernoulli has no density for.

    The logits are held within `LARGEST_LOGIT`, smoothly, for at 0 and 1 the density has no bound. Outside [0, 1] it is
    as Bernoulli's. Source: Loaiza-Ganem and Cunningham, The Continuous Bernoulli, 2019, eq. 6.
    """

    name = "continuous_bernoulli"

    @override
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        inside, penalty = _within_unit(x)
        logits = self._logits(output)
        # The normalizer (exp(logits) - 1) / logits is exp(logits / 2) sinhc(logits / 2).
        return (inside - 0.5) * logits - log_sinhc(logits.abs()) - penalty

    @override
    def mean(self, output: Tensor) -> Tensor:
        logits = self._logits(output)
        near = logits.abs() < 1
        small, large = torch.where(near, logits, 0.0), torch.where(near, 1.0, logits)
        series = polynomial(small * small, (1 / 12, -1 / 720, 1 / 30_240, -1 / 1_209_600, 1 / 47_900_160))
        # 1 / (1 - exp(-logits)) - 1 / logits, in one division.
        rest = 1 - torch.exp(-large)
        return torch.where(near, 0.5 + small * series, (large - rest) / (large * rest))

    @override
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        logits, u = self._logits(output), _uniform_like(output, generator)
        near = (
            logits.abs() < 1e-3
        )  # where the inverse of F(x) = (exp(x logits) - 1) / (exp(logits) - 1) is nearly a line
        large = torch.where(near, 1.0, logits)
        drawn = torch.log1p(u * torch.expm1(large)) / large
        return torch.where(near, u + 0.5 * logits * u * (1 - u), drawn).clamp(0, 1)

    @override
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        return {"logits": self._logits(output)}

    def _logits(self, output: Tensor) -> Tensor:
        return LARGEST_LOGIT * torch.tanh(output / LARGEST_LOGIT)


class Categorical(Likelihood):
    """One of `categories[f]` known categories, or one not seen in training: for columns of categories.

    x holds codes: 0 to c - 1 are known, all else counts as c, the unseen one; outputs are c + 1 logits a feature. A
    share `unseen` of the probability is spread evenly over all of them, so that no column can take over the sum.
    """

    name = "categorical"
    feature_of: Tensor
    code_of: Tensor
    known: Tensor
    membership: Tensor
    spread: Tensor

    def __init__(self, categories: Sequence[int], *, unseen: float = 1e-4) -> None:
        self.sizes = [count + 1 for count in categories]
        super().__init__(len(categories), outputs=sum(self.sizes))
        self.unseen = unseen
        feature_of = torch.repeat_interleave(torch.arange(self.features), torch.tensor(self.sizes))
        constants = {
            "feature_of": feature_of,  # (outputs,)
            "code_of": torch.cat([torch.arange(size) for size in self.sizes]).float(),  # (outputs,)
            "known": torch.tensor(categories).float(),  # (features,)
            "membership": torch.nn.functional.one_hot(feature_of, self.features).float(),  # (outputs, features)
            "spread": torch.cat([torch.full((size,), unseen / size) for size in self.sizes]),  # (outputs,)
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    @override
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        is_known = (x > -0.5) & (x < self.known - 0.5)
        codes = torch.where(is_known, torch.round(x), self.known)  # (..., features)
        chosen = codes.index_select(-1, self.feature_of) == self.code_of  # (..., outputs)
        return log(torch.where(chosen, self._probabilities(output), 0.0) @ self.membership)

    @override
    def mean(self, output: Tensor) -> Tensor:
        # Of the known ones, for the unseen one has no name.
        codes = [logits[..., :-1].argmax(-1) for logits in output.split(self.sizes, -1)]
        return torch.stack(codes, -1).to(output.dtype)

    @override
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        drawn = [
            torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator)
            for p in self._probabilities(output).split(self.sizes, -1)
        ]
        return torch.cat(drawn, -1).reshape(*output.shape[:-1], self.features).to(output.dtype)

    @override
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        return {"probabilities": self._probabilities(output)}

    def _probabilities(self, output: Tensor) -> Tensor:
        softmax = torch.cat([torch.softmax(logits, -1) for logits in output.split(self.sizes, -1)], -1)
        return (1 - self.unseen) * softmax + self.spread


class Mixed(Likelihood):
    """Groups of features, each with its own likelihood: for tables of several kinds of columns.

    parts: the positions of each group's features, and its likelihood. The decoder's outputs lie group by group.
    """

    name = "mixed"
    order: Tensor

    def __init__(self, parts: Sequence[tuple[Sequence[int], Likelihood]]) -> None:
        positions = [list(group) for group, _ in parts]
        everywhere = [position for group in positions for position in group]
        names = [part.name for _, part in parts]
        if sorted(everywhere) != list(range(len(everywhere))) or len(set(names)) != len(names):
            raise ValueError(
                f"features {positions} of {', '.join(names)}; expected each feature once and different likelihoods"
            )
        for group, part in parts:
            if len(group) != part.features:
                raise ValueError(f"{part.name}: {len(group)} features, its likelihood takes {part.features}")
        super().__init__(len(everywhere), outputs=sum(part.outputs for _, part in parts))
        self.parts = nn.ModuleList(part for _, part in parts)
        self.sizes = [part.outputs for _, part in parts]
        for index, group in enumerate(positions):
            self.register_buffer(f"group{index}", torch.tensor(group, dtype=torch.long), persistent=False)
        self.register_buffer("order", torch.argsort(torch.tensor(everywhere, dtype=torch.long)), persistent=False)

    @override
    def log_density(self, x: Tensor, output: Tensor) -> Tensor:
        return self._in_order([part.log_density(group, mine) for part, group, mine in self._each_of(x, output)])

    @override
    def mean_log_density(self, x: Tensor, output: Tensor) -> Tensor:
        return self._in_order([part.mean_log_density(group, mine) for part, group, mine in self._each_of(x, output)])

    @override
    def mean(self, output: Tensor) -> Tensor:
        return self._in_order([part.mean(mine) for part, mine in self._each(output)])

    @override
    def sample(self, output: Tensor, generator: torch.Generator) -> Tensor:
        return self._in_order([part.sample(mine, generator) for part, mine in self._each(output)])

    @override
    def parameters_of(self, output: Tensor) -> dict[str, Tensor]:
        return {
            f"{part.name}/{name}": value
            for part, mine in self._each(output)
            for name, value in part.parameters_of(mine).items()
        }

    def _each(self, output: Tensor) -> list[tuple[Likelihood, Tensor]]:
        parts = [part for part in self.parts if isinstance(part, Likelihood)]
        return list(zip(parts, output.split(self.sizes, -1), strict=True))

    def _each_of(self, x: Tensor, output: Tensor) -> list[tuple[Likelihood, Tensor, Tensor]]:
        return [
            (part, x.index_select(-1, self.get_buffer(f"group{index}")), mine)
            for index, (part, mine) in enumerate(self._each(output))
        ]

    def _in_order(self, groups: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(groups), -1).index_select(-1, self.order)


def _within_unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest value in [0, 1], and what being outside costs, nats."""
    inside = x.clamp(0, 1)
    return inside, OUTSIDE * (x - inside).abs()


def _uniform_like(output: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(output.shape, generator=generator, dtype=output.dtype, device=output.device)
