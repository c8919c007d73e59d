"""The aggregate posterior, on posteriors whose mixture is known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vaeserve_training.sweep.aggregate import COMPONENTS, Coverage, aggregate_log_density, coverage
from vaeserve_training.vae import Posterior


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return standard-normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(train: Posterior, held_out: Posterior | None = None, *, draws: int = 20_000) -> Coverage:
    """Measure posteriors, held-out ones the same as those of training rows unless they are given."""
    held_out = held_out or train
    noise = random(*held_out.mean.shape, seed=1)
    return coverage(train, held_out, noise=noise, draws=random(draws, train.mean.shape[1], seed=2))


def alike(mean: list[float], deviation: float, *, rows: int = 50) -> Posterior:
    """Return as many posteriors, all the same."""
    means = torch.tensor([mean] * rows)
    return Posterior(means, torch.full_like(means, 2 * math.log(deviation)))


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 1000))
def test_the_density_is_that_of_the_mixture(latent: int, rows: int, seed: int) -> None:
    """The aggregate posterior is the equal mixture of the rows' posteriors, as PyTorch has it too."""
    mean, log_variance = random(rows, latent, seed=seed), random(rows, latent, seed=seed + 1)
    z = 2 * random(20, latent, seed=seed + 2).double()
    components = Independent(Normal(mean.double(), torch.exp(0.5 * log_variance.double())), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(rows)), components)
    assert aggregate_log_density(Posterior(mean, log_variance), z) == pytest.approx(mixture.log_prob(z), abs=1e-6)


def test_the_aggregate_of_one_gaussian_misses_the_prior_by_their_divergence() -> None:
    """Where all posteriors are N(m, s^2), the emptiness is KL(N(0, 1) || N(m, s^2)), and all else closed too."""
    mean, s = [1.5, -0.5], 0.8
    found = measured(alike(mean, s))
    divergence = sum(math.log(s) + (1 + m * m) / (2 * s * s) - 0.5 for m in mean)
    assert found.emptiness == pytest.approx(divergence, rel=0.02)
    assert found.prior_log_density == pytest.approx(-divergence - math.log(2 * math.pi) - 1, rel=0.02)
    entropy = sum(0.5 * math.log(2 * math.pi * math.e * s * s) for _ in mean)
    assert measured(alike(mean, s, rows=COMPONENTS)).held_out_log_density == pytest.approx(-entropy, abs=0.1)
    assert found.centre == pytest.approx(math.sqrt((1.5**2 + 0.5**2) / 2))
    assert found.spread == pytest.approx(s)


def test_posteriors_that_are_the_prior_leave_nothing_empty() -> None:
    """Collapsed posteriors fill the prior, and tell no row from another."""
    found = measured(alike([0.0, 0.0, 0.0], 1.0))
    assert found.emptiness == pytest.approx(0, abs=1e-9)
    assert found.centre == 0
    assert found.spread == pytest.approx(1)
    assert found.overlap == pytest.approx(1 - 1 / 50)


def test_rows_spread_as_the_prior_fill_it() -> None:
    """Posteriors narrower than the prior, their means spread so that the mixture is the prior, leave little empty."""
    s = 0.5
    mean = math.sqrt(1 - s * s) * random(COMPONENTS, 2)
    found = measured(Posterior(mean, torch.full_like(mean, 2 * math.log(s))))
    assert 0 <= found.emptiness < 0.02
    assert found.spread == pytest.approx(1, abs=0.03)
    assert found.centre < 0.05
    assert 0.8 < found.overlap < 1


def test_narrow_posteriors_far_apart_leave_the_prior_empty() -> None:
    """As posteriors shrink to points, the prior's draws find ever less near, and no row is taken for another."""
    mean = 3 * random(200, 4)
    emptiness = []
    for s in (1.0, 0.3, 0.1, 0.03):
        found = measured(Posterior(mean, torch.full_like(mean, 2 * math.log(s))))
        emptiness.append(found.emptiness)
    assert emptiness == sorted(emptiness)
    assert emptiness[-1] > 100 * emptiness[0]
    assert found.overlap == 0
    assert found.held_out_log_density > found.prior_log_density + 800


def test_held_out_rows_are_looked_up_among_training_rows() -> None:
    """Held-out rows where no training row is have a low density, and their own centre and spread."""
    found = measured(alike([0.0], 0.1), alike([2.0], 0.1))
    assert found.held_out_log_density < -150
    assert found.centre == pytest.approx(2)
    assert found.spread == pytest.approx(0.1)
