"""The prior p(z): N(0, I) in training; to score, it may be replaced by a mixture that knows where the rows lie."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from typing_extensions import override

from vaeserve_training.logarithms import log_sum_exp
from vaeserve_training.sums import mean_over_samples, total

LOG_2_PI = math.log(2 * math.pi)
# Of an exemplar: less would need more than single precision, and was measured to gain nothing.
LEAST_VARIANCE = 0.01


class Prior(nn.Module, ABC):
    """A density of latents."""

    name: str

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, [...], for `z` [..., latent]."""

    @abstractmethod
    def kl(self, mean: Tensor, log_variance: Tensor, log_ratio: Tensor) -> Tensor:
        """Return KL(q(z|x) || p(z)) in nats, [rows].

        mean, log_variance: of q(z|x), [rows, latent]. log_ratio: `log p(z) - log q(z|x)` at samples, [rows, samples].
        """


class StandardNormal(Prior):
    """N(0, I), under which every model is trained."""

    name = "standard_normal"

    @override
    def log_density(self, z: Tensor) -> Tensor:
        return -0.5 * (total(z * z) + z.shape[-1] * LOG_2_PI)

    @override
    def kl(self, mean: Tensor, log_variance: Tensor, log_ratio: Tensor) -> Tensor:
        """In closed form. Source: Kingma and Welling 2014, appendix B."""
        return total(kl_terms(mean, log_variance))


class Exemplars(Prior):
    """An equal mixture of the posteriors of training rows: the aggregate posterior, as far as these rows show it.

    It is made once the encoder is frozen, and so still gives a lower bound on log p(x), under the decoder and this
    prior, which also sees how far a row's latents lie from all training rows'. The exemplars are latent codes of
    training rows: they travel with the model. Source: Tomczak and Welling, VAE with a VampPrior, 2018, section 2, and
    Norouzi, Fleet and Norouzi, Exemplar VAE, 2020, which train under such a prior.

    center: of the exemplars, about which squares are taken, for single precision's sake, [latent].
    weight, bias: with c = z - center, the logarithm of a component's share of the density is
    `[c * c, c] @ weight + bias`, [2 latent, exemplars] and [exemplars].
    """

    name = "exemplars"
    center: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, latent_dim: int, exemplars: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(latent_dim))
        self.register_buffer("weight", torch.zeros(2 * latent_dim, exemplars))
        self.register_buffer("bias", torch.zeros(exemplars))

    @classmethod
    def of(cls, mean: Tensor, log_variance: Tensor) -> "Exemplars":
        """Return the mixture of posteriors, both [exemplars, latent], none narrower than `LEAST_VARIANCE`."""
        prior = cls(mean.shape[1], len(mean)).to(mean.device)
        center = mean.mean(0)
        log_variance = log_variance.double().clamp(min=math.log(LEAST_VARIANCE))
        weight, bias = mixture((mean - center).double(), log_variance)
        prior.center.copy_(center)
        prior.weight.copy_(weight)
        prior.bias.copy_(bias - math.log(len(mean)))
        return prior

    @override
    def log_density(self, z: Tensor) -> Tensor:
        centered = (z - self.center).reshape(-1, z.shape[-1])
        terms = torch.cat([centered * centered, centered], dim=-1)
        return log_sum_exp(torch.addmm(self.bias, terms, self.weight)).reshape(z.shape[:-1])

    @override
    def kl(self, mean: Tensor, log_variance: Tensor, log_ratio: Tensor) -> Tensor:
        """As the mean over the samples: a mixture has no closed form."""
        return -mean_over_samples(log_ratio[..., None]).squeeze(-1)


def kl_terms(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return each latent dimension's KL(N(mean, exp(log_variance)) || N(0, 1)), nats, [rows, latent]."""
    return 0.5 * (torch.exp(log_variance) + mean * mean - 1 - log_variance)


def mixture(mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight [2 latent, components] and bias [components] of `log N(z; mean, exp(log_variance))`.

    mean, log_variance: [components, latent]. The density is linear in [z * z, z].
    """
    precision = torch.exp(-log_variance)
    weight = torch.cat([-0.5 * precision, mean * precision], dim=1).T
    bias = -0.5 * (mean * mean * precision + log_variance + LOG_2_PI).sum(1)
    return weight, bias
