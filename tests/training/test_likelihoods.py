"""The likelihoods' densities against PyTorch's own distributions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaeserve_training.likelihoods import Bernoulli, Gaussian, Likelihood, softplus


def gaussian(features: int, *, floor: float = 0.1) -> Gaussian:
    """Return a Gaussian whose learned scales differ."""
    likelihood = Gaussian(features, floor=floor).double()
    with torch.no_grad():
        likelihood.raw_scale.copy_(torch.linspace(-3, 3, features))
    return likelihood


def test_gaussian_log_density_is_the_normals() -> None:
    """The Gaussian's log-density is that of a normal with the learned scale, in nats."""
    likelihood = gaussian(5)
    x, output = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    expected = torch.distributions.Normal(output, likelihood.log_scale.exp()).log_prob(x)
    torch.testing.assert_close(likelihood.log_density(x, output), expected)


def test_bernoulli_log_density_is_the_cross_entropy() -> None:
    """Bernoulli's log-density is minus the binary cross-entropy, for bits as for grey levels."""
    x = torch.rand(7, 5, dtype=torch.float64)
    x[:3] = (x[:3] > 0.5).double()
    output = 10 * torch.randn(7, 5, dtype=torch.float64)
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(output, x, reduction="none")
    torch.testing.assert_close(Bernoulli().log_density(x, output), expected, rtol=1e-7, atol=1e-7)


def test_what_lies_outside_bernoulli_ranks_as_an_anomaly() -> None:
    """A value outside [0, 1] is less likely than any inside, and less the further out, whatever the logits."""
    x = torch.tensor([-1e15, -0.1, 0.0, 0.5, 1.0, 1.1, 1e15])
    for logit in (-50.0, 0.0, 50.0):
        density = Bernoulli().log_density(x, torch.tensor(logit))
        assert torch.isfinite(density).all()
        assert density[0] < density[1] < density[2:5].min()
        assert density[6] < density[5] < density[2:5].min()


@given(st.floats(-100, 100))
def test_softplus_has_no_logarithm_and_is_right(value: float) -> None:
    """The series for softplus agrees with the logarithm to 1e-8 of its value."""
    expected = max(value, 0.0) + math.log1p(math.exp(-abs(value)))
    assert softplus(torch.tensor(value, dtype=torch.float64)).item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("raw", [-1e4, -1.0, 0.0, 1.0, 1e4])
def test_the_learned_scale_stays_within_its_bounds(raw: float) -> None:
    """However far its parameter runs, the scale lies between floor and ceiling."""
    likelihood = Gaussian(1, floor=0.5, ceiling=4.0)
    assert likelihood.log_scale.exp().item() == pytest.approx(1.0)
    with torch.no_grad():
        likelihood.raw_scale.fill_(raw)
    assert 0.5 - 1e-6 <= likelihood.log_scale.exp().item() <= 4.0 + 1e-6


@pytest.mark.parametrize("likelihood", [gaussian(3), Bernoulli()])
def test_samples_have_the_likelihoods_mean(likelihood: Likelihood) -> None:
    """Many samples average to the mean that the decoder's output stands for."""
    output = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    samples = likelihood.sample(output.expand(100_000, 3), generator)
    torch.testing.assert_close(samples.mean(0), likelihood.mean(output), atol=0.05, rtol=0)


def test_parameters_have_their_usual_names() -> None:
    """A Gaussian has a location and a scale, Bernoulli has logits, each for every feature."""
    output = torch.zeros(2, 3, dtype=torch.float64)
    parameters = gaussian(3).parameters_of(output)
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {"loc": (2, 3), "scale": (2, 3)}
    assert list(Bernoulli().parameters_of(output)) == ["logits"]
