"""The bounds on log p(x): what training climbs, and what the exported scorer computes, by the same lines.

Sums are products with ones, for ONNX Runtime's reductions give a row other bits in another batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vaeserve_training.vae import VAE


class Bounds(NamedTuple):
    """Lower bounds on log p(x) and their parts, nats, each [rows] but the last [rows, features]."""

    elbo: Tensor
    log_likelihood: Tensor
    kl: Tensor
    iwae: Tensor
    feature_log_likelihood: Tensor


def bounds(vae: VAE, x: Tensor, noise: Tensor) -> Bounds:
    """Return the bounds of scaled rows `x` [rows, features].

    noise: standard normal, [samples, latent] for all rows or [rows, samples, latent].

    ELBO: E_q[log p(x|z)] - KL(q(z|x) || N(0, I)), the expectation a mean over samples and the KL in closed form.
    Source: Kingma and Welling 2014, eq. 10. IWAE: log mean_k p(x, z_k) / q(z_k|x). Source: Burda, Grosse and
    Salakhutdinov, Importance Weighted Autoencoders, 2016, eq. 8.
    """
    posterior = vae.encode(x)  # (rows, latent)
    z = posterior.sample(noise)  # (rows, samples, latent)
    density = vae.likelihood.log_density(x[:, None], vae.decode(z))  # (rows, samples, features)
    feature_log_likelihood = _mean_over_samples(density)  # (rows, features)
    log_likelihood = _total(feature_log_likelihood)  # (rows,)
    kl = _total(_kl_terms(posterior.mean, posterior.log_variance))  # (rows,)
    # log p(z) - log q(z|x): the normalizing constants cancel.
    ratio = 0.5 * (noise * noise - z * z) + 0.5 * posterior.log_variance[:, None]  # (rows, samples, latent)
    log_weights = _total(density) + _total(ratio)  # (rows, samples)
    iwae = torch.logsumexp(log_weights, dim=1) - _log_samples(noise)  # (rows,)
    return Bounds(log_likelihood - kl, log_likelihood, kl, iwae, feature_log_likelihood)


def _kl_terms(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return each latent's KL(N(mean, exp(log_variance)) || N(0, 1)). Source: Kingma and Welling 2014, appendix B."""
    return 0.5 * (torch.exp(log_variance) + mean * mean - 1 - log_variance)


def _total(terms: Tensor) -> Tensor:
    """Sum over the last axis."""
    return (terms @ terms.new_ones(terms.shape[-1], 1)).squeeze(-1)


def _mean_over_samples(terms: Tensor) -> Tensor:
    """Return the mean over the middle axis of [rows, samples, features]."""
    samples = terms.shape[1]
    return ((terms.new_ones(1, samples) @ terms) / samples).squeeze(1)


def _log_samples(noise: Tensor) -> Tensor:
    """Return the logarithm of the number of samples, without a logarithm."""
    return torch.logsumexp(torch.zeros_like(noise[..., 0]), dim=-1)
