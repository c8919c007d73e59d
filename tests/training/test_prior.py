"""The priors: N(0, I), and the mixture of training rows' posteriors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaeserve.signature import Signature
from vaeserve_training.features import Rows, TableFeatures
from vaeserve_training.likelihoods import FixedGaussian
from vaeserve_training.objective import bounds
from vaeserve_training.prior import LEAST_VARIANCE, Exemplars, Prior, StandardNormal, mixture
from vaeserve_training.vae import VAE


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return standard-normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def posteriors(count: int, latent_dim: int, *, scale: float = 0.3) -> tuple[Tensor, Tensor]:
    """Return means around a few places far from 0, and log-variances that differ, [count, latent]."""
    places = 3 * random(4, latent_dim, seed=1) + 2
    mean = places[torch.arange(count) % 4] + 0.5 * random(count, latent_dim, seed=2)
    return mean, 2 * math.log(scale) + 0.5 * random(count, latent_dim, seed=3)


def explicit(mean: Tensor, log_variance: Tensor) -> MixtureSameFamily:
    """Return the mixture as PyTorch has it."""
    parts = Independent(Normal(mean, torch.exp(0.5 * log_variance)), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(mean))), parts)


def test_the_standard_normal_is_pytorchs() -> None:
    """N(0, I) has PyTorch's density, at any shape of latents."""
    z = 3 * random(4, 5, 6)
    torch.testing.assert_close(StandardNormal().log_density(z), Normal(0.0, 1.0).log_prob(z).sum(-1))


@given(st.integers(1, 6), st.integers(1, 40))
def test_the_mixture_is_pytorchs(latent_dim: int, count: int) -> None:
    """The exemplars' density is that of an equal mixture of the posteriors, near them and far."""
    mean, log_variance = posteriors(count, latent_dim)
    prior = Exemplars.of(mean, log_variance)
    z = torch.cat([mean, 20 * random(10, latent_dim, seed=5)])[:, None] + random(3, latent_dim, seed=6)
    expected = explicit(mean, log_variance).log_prob(z)
    torch.testing.assert_close(prior.log_density(z), expected, rtol=2e-4, atol=2e-3)


def test_components_are_linear_in_squares_and_values() -> None:
    """`[z * z, z] @ weight + bias` is each component's log-density."""
    mean, log_variance = (tensor.double() for tensor in posteriors(7, 3))
    z = random(5, 3).double()
    weight, bias = mixture(mean, log_variance)
    expected = Normal(mean, torch.exp(0.5 * log_variance)).log_prob(z[:, None]).sum(-1)
    torch.testing.assert_close(torch.cat([z * z, z], 1) @ weight + bias, expected)


def test_no_exemplar_is_narrower_than_single_precision_takes() -> None:
    """A posterior with less than the least variance counts as one with it; the others stay as they are."""
    mean, log_variance = posteriors(20, 3)
    log_variance[:5] = -14.0
    held = log_variance.clamp(min=math.log(LEAST_VARIANCE))
    z = mean[:8, None] + 0.05 * random(3, 3, seed=6)
    density = Exemplars.of(mean, log_variance).log_density(z)
    torch.testing.assert_close(density, explicit(mean, held).log_prob(z), rtol=1e-4, atol=1e-2)
    assert (held[5:] == log_variance[5:]).all()


def test_rows_near_exemplars_are_likelier_than_rows_between_them() -> None:
    """The mixture knows where the training rows lie, which N(0, I) doesn't."""
    mean = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    prior = Exemplars.of(mean, torch.full((2, 2), -3.0))
    near, between = prior.log_density(mean), prior.log_density(torch.zeros(1, 2))
    assert (near > between + 10).all()
    assert (StandardNormal().log_density(mean) < StandardNormal().log_density(torch.zeros(1, 2))).all()


def test_one_exemplar_is_a_normal() -> None:
    """A single training row makes a prior too."""
    mean, log_variance = posteriors(1, 2)
    prior = Exemplars.of(mean, log_variance)
    torch.testing.assert_close(prior.log_density(mean), explicit(mean, log_variance).log_prob(mean))


def test_the_density_survives_a_far_center_in_single_precision() -> None:
    """Narrow exemplars a hundred away from 0 have the density they'd have in double precision."""
    mean, log_variance = 0.3 * random(50, 3) + 100, torch.full((50, 3), -4.0)
    prior = Exemplars.of(mean, log_variance)
    expected = explicit(mean.double(), log_variance.double()).log_prob(mean.double())
    torch.testing.assert_close(prior.log_density(mean).double(), expected, rtol=0, atol=5e-3)


def test_the_kl_to_the_mixture_is_the_mean_over_samples() -> None:
    """It is the mean of log q - log p at the latents drawn, and tends to the KL by quadrature."""
    centers, widths = posteriors(5, 1)
    prior = Exemplars.of(centers, widths)
    vae = linear(prior, latent_dim=1)
    rows = Rows(random(4, 3), torch.ones(4, 3))
    points = random(100_000, 1, seed=9)
    with torch.no_grad():
        parts = bounds(vae, rows, points)
        mean, log_variance = vae.encode(rows)
        q = Normal(mean, torch.exp(0.5 * log_variance))
        z = mean[:, None] + torch.exp(0.5 * log_variance)[:, None] * points  # (rows, samples, 1)
        log_q = q.log_prob(z.transpose(0, 1))[..., 0].T
        torch.testing.assert_close(parts.kl, (log_q - prior.log_density(z)).mean(1), rtol=1e-3, atol=1e-3)
        grid = torch.linspace(-20, 20, 20_001)[:, None]
        density = q.log_prob(grid[:, None])[..., 0]  # (grid, rows)
        exact = (density.exp() * (density - prior.log_density(grid)[:, None])).sum(0) * (40 / 20_000)
    torch.testing.assert_close(parts.kl, exact, rtol=0.02, atol=0.02)


def linear(prior: Prior, *, latent_dim: int) -> VAE:
    """Return a VAE of three numbers with a bent decoder and an encoder that is off the true posterior."""
    torch.manual_seed(1)
    encoder = nn.Linear(3, 2 * latent_dim)
    with torch.no_grad():
        encoder.bias[latent_dim:] += 2.5  # a wide proposal, whose weights have a variance
    return VAE(
        TableFeatures(Signature.numbers([*"abc"]), "standard"),
        FixedGaussian(3, scale=0.7),
        prior,
        encoder=encoder,
        decoder=nn.Sequential(nn.Linear(latent_dim, 8), nn.SiLU(), nn.Linear(8, 3)),
        latent_dim=latent_dim,
    )


@pytest.mark.parametrize("latent_dim", [1, 2])
@pytest.mark.parametrize("exemplars", [0, 6])
def test_the_bounds_are_lower_bounds_of_the_integral(latent_dim: int, exemplars: int) -> None:
    """ELBO <= IWAE <= log p(x), the integral over all latents on a grid, under either prior."""
    centers, widths = posteriors(6, latent_dim, scale=0.6)
    prior = Exemplars.of(0.4 * centers, widths) if exemplars else StandardNormal()
    vae = linear(prior, latent_dim=latent_dim)
    rows = Rows(random(5, 3, seed=7), torch.ones(5, 3))
    axis = torch.linspace(-14, 14, 20_001 if latent_dim == 1 else 701)
    z = torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim)  # (grid, latent)
    with torch.no_grad():
        log_prior = prior.log_density(z)
        cell = latent_dim * torch.log(axis[1] - axis[0])
        torch.testing.assert_close(torch.logsumexp(log_prior, 0) + cell, torch.tensor(0.0), atol=1e-3, rtol=0)
        density = vae.likelihood.log_density(rows.x[:, None], vae.decode(z)).sum(-1)  # (rows, grid)
        exact = torch.logsumexp(density + log_prior, 1) + cell
        parts = bounds(vae, rows, random(5, 20_000, latent_dim, seed=8))
    assert (parts.elbo < exact - 0.02).all()
    assert (parts.elbo < parts.iwae).all()
    torch.testing.assert_close(parts.iwae, exact, atol=0.08, rtol=0)
