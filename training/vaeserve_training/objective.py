"""The bounds on log p(x): what training climbs, and what the exported scorer computes, by the same lines."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from vaeserve_training.config import ObjectiveConfig
from vaeserve_training.features import Rows
from vaeserve_training.prior import LOG_2_PI, kl_terms
from vaeserve_training.sums import log_count, total
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

    output: the decoder's, [rows, samples, outputs].
    log_ratio: log p(z) - log q(z|x), nats, [rows, samples].
    """

    posterior: Posterior
    output: Tensor
    log_ratio: Tensor


def draw(vae: VAE, noise: Tensor, posterior: Posterior) -> Draws:
    """Take latents of the rows' `posterior` at `noise`, and decode them.

    noise: standard normal, [samples, latent] for all rows or [rows, samples, latent].
    """
    z = vae.sample(posterior, noise)  # (rows, samples, latent)
    output = vae.decode(z)  # (rows, samples, outputs)
    if vae.point:  # no distribution, no ratio of two
        return Draws(posterior, output, torch.zeros_like(z[..., 0]))
    spread = total(posterior.log_variance + LOG_2_PI)[:, None]  # (rows, 1)
    log_posterior = -0.5 * (total(noise * noise) + spread)  # (rows, samples)
    return Draws(posterior, output, vae.prior.log_density(z) - log_posterior)


def log_likelihood(vae: VAE, rows: Rows, output: Tensor) -> Tensor:
    """Return log p(x|z), nats, [rows, samples], for the decoder's `output` [rows, samples, outputs]."""
    with _whole_precision(output):
        density = vae.likelihood.log_density(rows.x[:, None], output)  # (rows, samples, features)
    return total(rows.explained(density))


def feature_log_likelihood(vae: VAE, rows: Rows, output: Tensor) -> Tensor:
    """Return each feature's log p(x|z), nats, a mean over the samples of `output`, [rows, features].

    output: the decoder's, [rows, samples, outputs]. It isn't made of the terms that `log_likelihood` sums: what the
    samples share can stand outside their mean, and then the ELBO alone takes less.
    """
    with _whole_precision(output):
        density = vae.likelihood.mean_log_density(rows.x, output)
    return rows.explained(density)


def bounds(vae: VAE, rows: Rows, noise: Tensor, *, scoring: bool = False) -> Bounds:
    """Return the bounds of `rows`, with the encoder's posterior or the one that the model scores with.

    noise: standard normal, [samples, latent] for all rows or [rows, samples, latent].

    ELBO: E_q[log p(x|z)] - KL(q(z|x) || p(z)), the expectation a mean over samples, and the KL in closed form where
    the prior has one. Source: Kingma and Welling 2014, eq. 10. IWAE: log mean_k p(x, z_k) / q(z_k|x). Source: Burda,
    Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016, eq. 8.
    """
    posterior = vae.encode(rows)  # (rows, latent)
    draws = draw(vae, noise, vae.scoring(posterior) if scoring else posterior)
    by_feature = feature_log_likelihood(vae, rows, draws.output)  # (rows, features)
    expected = total(by_feature)  # (rows,)
    kl = torch.zeros_like(expected) if vae.point else vae.prior.kl(*draws.posterior, draws.log_ratio)  # (rows,)
    log_weights = log_likelihood(vae, rows, draws.output) + draws.log_ratio  # (rows, samples)
    iwae = torch.logsumexp(log_weights, dim=1) - log_count(noise[..., 0])  # (rows,)
    return Bounds(expected - kl, expected, kl, iwae, by_feature)


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
    draws = draw(vae, noise, vae.encode(rows if seen is None else seen))
    densities = log_likelihood(vae, rows, draws.output)  # (rows, samples)
    if config.bound == "iwae":
        log_weights = densities + beta * draws.log_ratio
        losses = math.log(noise.shape[-2]) - torch.logsumexp(log_weights, dim=1)  # (rows,)
        return (losses * _kept(losses, trim)).mean()
    kl = torch.zeros_like(draws.posterior.mean) if vae.point else kl_terms(*draws.posterior)  # (rows, latent)
    kept = _kept(beta * kl.sum(1) - densities.mean(1), trim)  # (rows,)
    latent_kl = (kl * kept[:, None]).mean(0)  # (latent,)
    return beta * latent_kl.clamp(min=config.free_bits).sum() - (densities.mean(1) * kept).mean()


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
