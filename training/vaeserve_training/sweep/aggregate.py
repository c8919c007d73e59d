"""The aggregate posterior, the mixture of all rows' posteriors, and how well it covers the prior."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vaeserve_training.prior import LOG_2_PI, mixture
from vaeserve_training.vae import Posterior

# Rows whose posteriors make up the mixture.
COMPONENTS = 2000
# Latents x components whose densities are held at once.
DENSITIES_AT_ONCE = 2**23


class Coverage(NamedTuple):
    """How the posteriors of rows lie to each other and to the prior N(0, I).

    centre: the distance from the origin of the held-out rows' aggregate posterior's mean, over the square root of the
    latent dimensions; the prior's is 0.
    spread: its standard deviation, a root mean square over the dimensions; the prior's is 1.
    overlap: the share of draws of held-out rows' posteriors that another one of them makes likelier than their own.
    held_out_log_density: the mean log-density of those draws under the aggregate posterior of training rows, nats.
    prior_log_density: that of draws from the prior.
    emptiness: `KL(N(0, I) || aggregate posterior)`, nats, over the same draws: 0 where the rows' posteriors fill the
    prior, and large where most of it has no row near. Source: Makhzani et al., Adversarial Autoencoders, 2016, for the
    aggregate posterior; Rosca, Lakshminarayanan and Mohamed, Distribution Matching in Variational Inference, 2018, for
    measuring the two apart.
    """

    centre: float
    spread: float
    overlap: float
    held_out_log_density: float
    prior_log_density: float
    emptiness: float


def coverage(train: Posterior, held_out: Posterior, *, noise: Tensor, draws: Tensor) -> Coverage:
    """Measure the posteriors of training rows and of held-out ones.

    noise: standard normal, one point a held-out row, [rows, latent]. draws: from the prior, [draws, latent].
    """
    train, held_out = (Posterior(mean.double(), log_var.double()) for mean, log_var in (train, held_out))
    z = held_out.mean + torch.exp(0.5 * held_out.log_variance) * noise.double()  # (rows, latent)
    of_draws = aggregate_log_density(train, draws)
    of_prior = -0.5 * (draws.double().square() + LOG_2_PI).sum(1)
    likeliest = torch.cat([log_q.argmax(1) for log_q in _log_densities(held_out, z)])
    return Coverage(
        centre=float(held_out.mean.mean(0).square().mean().sqrt()),
        spread=float((held_out.mean.var(0, correction=0) + torch.exp(held_out.log_variance).mean(0)).mean().sqrt()),
        overlap=float((likeliest != torch.arange(len(z))).double().mean()),
        held_out_log_density=float(aggregate_log_density(train, z).mean()),
        prior_log_density=float(of_draws.mean()),
        emptiness=float((of_prior - of_draws).mean()),
    )


def aggregate_log_density(posterior: Posterior, z: Tensor) -> Tensor:
    """Return `log mean_n q(z|x_n)`, nats, [latents], for `z` [latents, latent] and the posteriors of rows."""
    some = Posterior(posterior.mean[:COMPONENTS].double(), posterior.log_variance[:COMPONENTS].double())
    summed = torch.cat([torch.logsumexp(log_q, dim=1) for log_q in _log_densities(some, z.double())])
    return summed - math.log(len(some.mean))


def _log_densities(posterior: Posterior, z: Tensor) -> list[Tensor]:
    """Return `log q(z_i|x_j)`, nats, in parts [latents, rows]."""
    weight, bias = mixture(*posterior)
    parts = z.split(max(1, DENSITIES_AT_ONCE // len(bias)))
    return [torch.cat([part * part, part], dim=1) @ weight + bias for part in parts]
