"""Posterior collapse, measured: how much of the latent space says something of the rows."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from vaeserve_training.config import ObjectiveConfig
from vaeserve_training.prior import kl_terms, mixture
from vaeserve_training.vae import Posterior

# A latent dimension whose mean varies less than this over rows is inactive.
# Source: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016, section 5.2.
ACTIVE_VARIANCE = 0.01
# Rows that the mutual information is estimated on, which bounds it by their logarithm.
INFORMATION_ROWS = 1024
# Fewer active dimensions than this share are worth a word.
FEW_ACTIVE = 0.25


class Usage(NamedTuple):
    """How a model uses its latent dimensions.

    active_units: those whose mean varies by more than `ACTIVE_VARIANCE`.
    latent_kl: each dimension's KL to N(0, 1), nats, a mean over rows.
    mutual_information: an estimate of I(x; z), nats, `E[log q(z|x) - log q(z)]` with the aggregate posterior q(z)
    that of the same rows; at most the logarithm of their number. Source: Hoffman and Johnson, ELBO surgery, 2016.
    """

    active_units: int
    latent_kl: list[float]
    mutual_information: float


def usage(posterior: Posterior, noise: Tensor) -> Usage:
    """Measure the posteriors of rows; noise: standard normal, [rows, latent]."""
    mean, log_variance = posterior
    active = (mean.var(0, correction=0) > ACTIVE_VARIANCE).sum()
    return Usage(
        active_units=int(active),
        latent_kl=kl_terms(mean, log_variance).mean(0).tolist(),
        mutual_information=_mutual_information(
            Posterior(mean[:INFORMATION_ROWS], log_variance[:INFORMATION_ROWS]), noise[:INFORMATION_ROWS]
        ),
    )


def _mutual_information(posterior: Posterior, noise: Tensor) -> float:
    mean, log_variance = (tensor.double() for tensor in posterior)
    z = mean + torch.exp(0.5 * log_variance) * noise
    weight, bias = mixture(mean, log_variance)
    log_q = torch.cat([z * z, z], dim=1) @ weight + bias  # (rows, rows), log q(z_i|x_j)
    aggregate = torch.logsumexp(log_q, dim=1) - math.log(len(z))
    return max(0.0, float((log_q.diagonal() - aggregate).mean()))


def warnings_of(active: int, latent_dim: int, objective: ObjectiveConfig) -> Iterator[str]:
    """Yield what a person should know of a model that uses little of its latent space, and what to change."""
    change = "raise objective.kl_warmup"
    if objective.bound == "elbo":  # the other has no KL to leave some of
        change += ", or set objective.free_bits = 0.1"
    if objective.beta > 0:
        change = f"lower objective.beta from {objective.beta:g}, {change}"
    if active == 0:
        yield (
            f"posterior collapse: none of the {latent_dim} latent dimensions says anything of the rows, so every row "
            f"is explained alike; {change}"
        )
    elif active < FEW_ACTIVE * latent_dim:
        yield (
            f"{active} of the {latent_dim} latent dimensions are used; where that is too few, {change}; where it is "
            f"enough, model.latent_dim = {max(active, 1)} does as well"
        )
