"""The bounds and their parts."""

import math

import pytest
import torch
from torch import Tensor

from vaeserve.signature import Signature
from vaeserve_training.config import ModelConfig
from vaeserve_training.objective import Bounds, bounds
from vaeserve_training.vae import VAE, Posterior


@pytest.fixture
def vae() -> VAE:
    """A small model with weights of some size, in double precision."""
    torch.manual_seed(0)
    config = ModelConfig(likelihood="gaussian", latent_dim=3, hidden=(16,))
    model = VAE.build(Signature.table(["a", "b", "c", "d", "e"]), config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


@pytest.fixture
def x() -> Tensor:
    """Some rows."""
    return torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def noise(samples: int, *shape: int, seed: int = 2) -> Tensor:
    """Return standard-normal noise, [..., samples, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, samples, 3, dtype=torch.float64, generator=generator)


def test_the_parts_add_up(vae: VAE, x: Tensor) -> None:
    """The ELBO is the log-likelihood less the KL, and the log-likelihood the sum of the features'."""
    parts = bounds(vae, x, noise(8))
    torch.testing.assert_close(parts.elbo, parts.log_likelihood - parts.kl)
    torch.testing.assert_close(parts.log_likelihood, parts.feature_log_likelihood.sum(1))
    assert parts.feature_log_likelihood.shape == (6, 5)


def test_the_kl_is_the_closed_form(vae: VAE, x: Tensor) -> None:
    """The KL is PyTorch's between the posterior and N(0, I), and meets its Monte Carlo estimate."""
    mean, log_variance = vae.encode(x)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance))
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    kl = bounds(vae, x, noise(1)).kl
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(posterior, prior).sum(1))
    z = Posterior(mean, log_variance).sample(noise(200_000)).transpose(0, 1)  # (samples, rows, latent)
    estimate = (posterior.log_prob(z) - prior.log_prob(z)).sum(-1)  # (samples, rows)
    error = estimate.std(0) / math.sqrt(len(estimate))
    assert ((estimate.mean(0) - kl).abs() < 4 * error + 1e-9).all()


def test_the_log_likelihood_is_the_mean_over_samples(vae: VAE, x: Tensor) -> None:
    """The expectation is the plain mean of log p(x|z) over the noise points."""
    points = noise(8)
    z = vae.encode(x).sample(points)
    density = torch.distributions.Normal(vae.decode(z), vae.likelihood.log_scale.exp())  # type: ignore[operator]
    expected = density.log_prob(x[:, None]).sum(-1).mean(1)
    torch.testing.assert_close(bounds(vae, x, points).log_likelihood, expected)


def test_iwae_is_the_log_mean_of_the_weights(vae: VAE, x: Tensor) -> None:
    """The IWAE bound is log (1/K) sum_k p(x, z_k) / q(z_k | x), written out."""
    points = noise(8)
    mean, log_variance = vae.encode(x)
    z = Posterior(mean, log_variance).sample(points)
    scale = vae.likelihood.log_scale.exp()  # type: ignore[operator]
    log_joint = torch.distributions.Normal(vae.decode(z), scale).log_prob(x[:, None]).sum(-1)
    log_joint = log_joint + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_posterior = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance)).log_prob(z.transpose(0, 1))
    log_weights = log_joint - log_posterior.sum(-1).T
    expected = torch.logsumexp(log_weights, 1) - math.log(8)
    torch.testing.assert_close(bounds(vae, x, points).iwae, expected)


def test_iwae_is_tighter_than_the_elbo(vae: VAE, x: Tensor) -> None:
    """Over many draws of noise the IWAE bound lies above the ELBO, and rises with the samples."""

    def mean_over_draws(samples: int, part: str) -> Tensor:
        draws = [getattr(bounds(vae, x, noise(samples, seed=seed)), part) for seed in range(300)]
        return torch.stack(draws).mean()

    elbo, iwae_5, iwae_50 = mean_over_draws(5, "elbo"), mean_over_draws(5, "iwae"), mean_over_draws(50, "iwae")
    assert elbo < iwae_5 < iwae_50


def test_noise_for_all_rows_is_noise_for_each(vae: VAE, x: Tensor) -> None:
    """Noise of [samples, latent] is the same as a copy of it for each row."""
    points = noise(4)
    for shared, repeated in zip(bounds(vae, x, points), bounds(vae, x, points.expand(6, 4, 3)), strict=True):
        torch.testing.assert_close(shared, repeated)


def test_gradients_flow_through_the_reparameterized_sample(vae: VAE, x: Tensor) -> None:
    """The log-likelihood's gradient reaches the encoder through mean + sigma * noise, not a plain sample."""

    def encoder_gradient(objective: Tensor) -> float:
        gradients = torch.autograd.grad(objective, list(vae.encoder.parameters()), allow_unused=True)
        return sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None)

    assert encoder_gradient(bounds(vae, x, noise(1, 6)).log_likelihood.sum()) > 0
    mean, log_variance = vae.encode(x)
    plain = torch.distributions.Normal(mean, torch.exp(0.5 * log_variance)).sample()  # no rsample
    density = vae.likelihood.log_density(x, vae.decode(plain))
    assert encoder_gradient(density.sum() + 0 * mean.sum()) == 0


def test_bounds_are_named() -> None:
    """The parts come in the order that the exported scorer names them."""
    assert Bounds._fields == ("elbo", "log_likelihood", "kl", "iwae", "feature_log_likelihood")
