"""The bounds on log p(x): what training climbs, and what the exported scorer computes, by the same lines."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from vaeserve_training.config import ObjectiveConfig
from vaeserve_training.features import Rows
from vaeserve_training.prior import LOG_2_PI, kl_terms
from vaeserve_training.sums import log_count, mean_over_samples, total
from vaeserve_training.vae import VAE, Posterior


class Bounds(NamedTuple):
    """Lower bounds on log p(x) and their parts, nats, each [rows] but the last [rows, features]."""

    elbo: Tensor
    log_likelihood: Tensor
    kl: Tensor
    iwae: Tensor
    feature_log_likelihood: Tensor


class Draws(NamedTuple):
    """What a model makes of rows at noise points.

    density: each feature's log p(x|z), nats, 0 where it isn't observed, [rows, samples, features].
    log_ratio: log p(z) - log q(z|x), nats, [rows, samples].
    """

    posterior: Posterior
    density: Tensor
    log_ratio: Tensor


def draw(vae: VAE, rows: Rows, noise: Tensor, posterior: Posterior) -> Draws:
    """Take latents of the rows' `posterior` at `noise`, and ask how likely they make `rows`.

    noise: standard normal, [samples, latent] for all rows or [rows, samples, latent].
    """
    z = vae.sample(posterior, noise)  # (rows, samples, latent)
    output = vae.decode(z)  # (rows, samples, outputs)
    with _whole_precision(z):
        density = vae.likelihood.log_density(rows.x[:, None], output)  # (rows, samples, features)
    if rows.log_jacobian is not None:
        density = density + rows.log_jacobian[:, None]
    if rows.observed is not None:
        density = density * rows.observed[:, None]
    if vae.point:  # no distribution, no ratio of two
        return Draws(posterior, density, torch.zeros_like(z[..., 0]))
    spread = total(posterior.log_variance + LOG_2_PI)[:, None]  # (rows, 1)
    log_posterior = -0.5 * (total(noise * noise) + spread)  # (rows, samples)
    return Draws(posterior, density, vae.prior.log_density(z) - log_posterior)


def bounds(vae: VAE, rows: Rows, noise: Tensor, *, scoring: bool = False) -> Bounds:
    """Return the bounds of `rows`, with the encoder's posterior or the one that the model scores with.

    noise: standard normal, [samples, latent] for all rows or [rows, samples, latent].

    ELBO: E_q[log p(x|z)] - KL(q(z|x) || p(z)), the expectation a mean over samples, and the KL in closed form where
    the prior has one. Source: Kingma and Welling 2014, eq. 10. IWAE: log mean_k p(x, z_k) / q(z_k|x). Source: Burda,
    Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016, eq. 8.
    """
    posterior = vae.encode(rows)  # (rows, latent)
    draws = draw(vae, rows, noise, vae.scoring(posterior) if scoring else posterior)
    feature_log_likelihood = mean_over_samples(draws.density)  # (rows, features)
    log_likelihood = total(feature_log_likelihood)  # (rows,)
    kl = torch.zeros_like(log_likelihood) if vae.point else vae.prior.kl(*draws.posterior, draws.log_ratio)  # (rows,)
    log_weights = total(draws.density) + draws.log_ratio  # (rows, samples)
    iwae = torch.logsumexp(log_weights, dim=1) - log_count(noise[..., 0])  # (rows,)
    return Bounds(log_likelihood - kl, log_likelihood, kl, iwae, feature_log_likelihood)


def mean_bounds(members: list[Bounds]) -> Bounds:
    """Return the mean of the members' bounds and parts, itself a bound on their equal mixture (by Jensen)."""
    if len(members) == 1:
        return members[0]
    return Bounds(*(sum(parts[1:], start=parts[0]) / len(members) for parts in zip(*members, strict=True)))


def loss(
    vae: VAE,
    rows: Rows,
    noise: Tensor,
    config: ObjectiveConfig,
    *,
    beta: float | Tensor,
    trim: float = 0.0,
    seen: Rows | None = None,
) -> Tensor:
    """Return minus the objective, nats a row, a mean over `rows`: what an optimizer lowers.

    trim: the share of the rows, those with the highest loss, that don't count. Source: Rousseeuw, Least Median of
    Squares Regression, 1984, section 4. seen: what the encoder sees in place of `rows`.

    With `free_bits` a latent dimension's KL, averaged over the rows, counts as that much at least. Source: Kingma et
    al., Improved Variational Inference with Inverse Autoregressive Flow, 2016, eq. 15.
    """
    draws = draw(vae, rows, noise, vae.encode(rows if seen is None else seen))
    log_likelihood = total(draws.density)  # (rows, samples)
    if config.bound == "iwae":
        log_weights = log_likelihood + beta * draws.log_ratio
        losses = math.log(noise.shape[-2]) - torch.logsumexp(log_weights, dim=1)  # (rows,)
        return (losses * _kept(losses, trim)).mean()
    kl = torch.zeros_like(draws.posterior.mean) if vae.point else kl_terms(*draws.posterior)  # (rows, latent)
    kept = _kept(beta * kl.sum(1) - log_likelihood.mean(1), trim)  # (rows,)
    latent_kl = (kl * kept[:, None]).mean(0)  # (latent,)
    return beta * latent_kl.clamp(min=config.free_bits).sum() - (log_likelihood.mean(1) * kept).mean()


def _kept(losses: Tensor, trim: float) -> Tensor:
    """Return each row's weight, 0 for the share `trim` with the highest losses, and 1 on average, [rows]."""
    if not trim:
        return torch.ones_like(losses)
    most = max(1, round((1 - trim) * len(losses)))
    kept = (losses <= losses.detach().sort().values[most - 1]).to(losses.dtype)
    return kept / kept.mean()


def _whole_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return where products aren't rounded to half precision, as the networks' may be."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
