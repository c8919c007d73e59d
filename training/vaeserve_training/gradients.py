"""Three ways to the gradient of `E_q[f(z)]` in the parameters of q, of which training takes the first.

Each draws z from q = N(mean, diag exp(log_variance)) at standard-normal `noise` [draws, rows, latent]. The first two
estimate the same gradient and differ in how much the estimates vary; through the third there is none.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vaeserve_training.prior import LOG_2_PI
from vaeserve_training.vae import Posterior

# From latents [draws, rows, latent] to values in nats, [draws, rows].
Value = Callable[[Tensor], Tensor]


class Gradients(NamedTuple):
    """Estimates of the gradient in the mean and the log-variance, one a draw, both [draws, rows, latent]."""

    mean: Tensor
    log_variance: Tensor


def reparameterized(value: Value, posterior: Posterior, noise: Tensor) -> Gradients:
    """Differentiate through `z = mean + sigma * noise`.

    Source: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, section 2.4.
    """
    mean, log_variance = _leaves(posterior, noise)
    value(mean + torch.exp(0.5 * log_variance) * noise).sum().backward()
    return _gradients(mean, log_variance)


def score_function(value: Value, posterior: Posterior, noise: Tensor, *, baseline: bool = False) -> Gradients:
    """Weigh the gradient of `log q(z)` by `f(z)`, which need not be differentiable.

    baseline: take off f what it is on average over a row's other draws, which changes no expectation. Sources:
    Williams, Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning, 1992; Kool, van
    Hoof and Welling, Buy 4 REINFORCE Samples, Get a Baseline for Free, 2019.
    """
    mean, log_variance = _leaves(posterior, noise)
    z = plain_sample(posterior, noise)
    with torch.no_grad():
        values = value(z)  # (draws, rows)
        if baseline:
            values = (values - values.mean(0)) * len(values) / (len(values) - 1)
    log_q = -0.5 * ((z - mean).square() * torch.exp(-log_variance) + log_variance + LOG_2_PI).sum(-1)
    (values * log_q).sum().backward()
    return _gradients(mean, log_variance)


def plain_sample(posterior: Posterior, noise: Tensor) -> Tensor:
    """Return the draws as numbers, which have forgotten what they were drawn from: no gradient goes through them."""
    return (posterior.mean + torch.exp(0.5 * posterior.log_variance) * noise).detach()


def _leaves(posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return the parameters, a copy for each draw, so that each draw has a gradient of its own."""
    mean, log_variance = (tensor.detach().expand_as(noise).clone().requires_grad_() for tensor in posterior)
    return mean, log_variance


def _gradients(mean: Tensor, log_variance: Tensor) -> Gradients:
    assert mean.grad is not None  # noqa: S101 - what was differentiated depends on both
    assert log_variance.grad is not None  # noqa: S101
    return Gradients(mean.grad, log_variance.grad)
