"""Ways to the gradient of an expectation, on expectations whose gradient is known."""

import math

import pytest
import torch
from torch import Tensor

from vaeserve_training.gradients import Gradients, plain_sample, reparameterized, score_function
from vaeserve_training.likelihoods import FixedGaussian
from vaeserve_training.sums import total
from vaeserve_training.vae import Posterior

DRAWS = 100_000
# How many standard errors an unbiased estimate may be off; one in two million is.
ERRORS = 5.0

POSTERIOR = Posterior(torch.tensor([[0.5, -1.0]]), torch.tensor([[2 * math.log(0.3), 2 * math.log(0.8)]]))
CURVATURE, CENTRE = torch.tensor([2.0, 0.5]), torch.tensor([-0.25, 1.0])


def noise(draws: int = DRAWS, rows: int = 1, latent: int = 2) -> Tensor:
    """Return standard-normal numbers."""
    return torch.randn(draws, rows, latent, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def parabola(z: Tensor) -> Tensor:
    """Return `-a (z - b)^2 / 2`, a sum over dimensions: its mean is `-a ((mean - b)^2 + variance) / 2`."""
    return -0.5 * (CURVATURE * (z - CENTRE).square()).sum(-1)


def assert_unbiased(found: Gradients, mean: Tensor, log_variance: Tensor) -> None:
    """Assert that the draws' average is the exact gradient, but for the standard error of that many."""
    for draws, exact in ((found.mean, mean), (found.log_variance, log_variance)):
        error = draws.std(0) / math.sqrt(len(draws))
        assert ((draws.mean(0) - exact).abs() <= ERRORS * error).all()
        assert (error < 0.05 * exact.abs().amax()).all()  # or it would say little


@pytest.mark.parametrize("way", ["reparameterized", "score function", "baseline"])
def test_the_estimators_have_the_exact_gradient_for_their_mean(way: str) -> None:
    """Of a parabola, whose gradients are `-a (mean - b)` and `-a variance / 2`, every estimator finds both."""
    if way == "reparameterized":
        found = reparameterized(parabola, POSTERIOR, noise())
    else:
        found = score_function(parabola, POSTERIOR, noise(), baseline=way == "baseline")
    exact = -CURVATURE * (POSTERIOR.mean - CENTRE)
    assert_unbiased(found, exact, -0.5 * CURVATURE * torch.exp(POSTERIOR.log_variance))


def test_the_variances_are_those_that_the_moments_of_the_normal_give() -> None:
    """Of a one-dimensional parabola a draw's gradient varies by `a^2 s^2`, or by the score function far more.

    With c = mean - b that is `a^2 / (4 s^2) (c^4 + 18 c^2 s^2 + 15 s^4) - (a c)^2`, from E[e^2], E[e^4] and E[e^6].
    """
    a, b, mean, s = 2.0, -0.25, 0.5, 0.3
    c = mean - b
    posterior = Posterior(torch.tensor([[mean]]), torch.tensor([[2 * math.log(s)]]))
    draws = noise(latent=1)
    through = reparameterized(lambda z: -0.5 * a * (z - b).square().sum(-1), posterior, draws).mean.var()
    score = score_function(lambda z: -0.5 * a * (z - b).square().sum(-1), posterior, draws).mean.var()
    by_moments = a**2 / (4 * s**2) * (c**4 + 18 * c**2 * s**2 + 15 * s**4) - (a * c) ** 2
    assert float(through) == pytest.approx(a**2 * s**2, rel=0.03)
    assert float(score) == pytest.approx(by_moments, rel=0.05)
    assert float(score / through) == pytest.approx(by_moments / (a * s) ** 2, rel=0.06)
    assert score > 10 * through


def test_a_baseline_lowers_the_variance_and_keeps_the_mean() -> None:
    """What f is on average is most of the score function's variance."""
    plain = score_function(parabola, POSTERIOR, noise()).mean
    with_baseline = score_function(parabola, POSTERIOR, noise(), baseline=True).mean
    assert (with_baseline.var(0) < 0.8 * plain.var(0)).all()
    assert with_baseline.mean(0) == pytest.approx(plain.mean(0), abs=0.1)


def test_the_bound_of_a_linear_decoder_has_the_exact_gradient() -> None:
    """The gradient of E_q[log p(x|z)] is `W' (x - W mean) / s^2` for every row, by both ways, and each row its own."""
    weight = torch.tensor([[2.0, 0.0], [1.0, -1.0], [0.5, 0.5]], dtype=torch.float64)
    likelihood = FixedGaussian(3, scale=0.5)
    x = torch.tensor([[1.0, 0.5, -0.3], [-2.0, 0.1, 0.4]], dtype=torch.float64)
    posterior = Posterior(torch.tensor([[0.3, -0.2], [-0.8, 0.1]]), torch.full((2, 2), 2 * math.log(0.2)))

    def log_likelihood(z: Tensor) -> Tensor:
        return total(likelihood.log_density(x, z @ weight.T))

    exact = (x - posterior.mean.double() @ weight.T) @ weight / 0.5**2
    curvature = -0.5 * torch.exp(posterior.log_variance) * weight.square().sum(0) / 0.5**2
    draws = noise(rows=2)
    assert_unbiased(reparameterized(log_likelihood, posterior, draws), exact, curvature)
    assert_unbiased(score_function(log_likelihood, posterior, draws, baseline=True), exact, curvature)


def test_nothing_goes_through_a_plain_sample() -> None:
    """A draw that is a number has no gradient for the encoder, though the decoder still has its own."""
    mean, log_variance = (part.clone().requires_grad_() for part in POSTERIOR)
    weight = torch.ones(2, requires_grad=True)
    z = plain_sample(Posterior(mean, log_variance), noise(8).float())
    value = (z * weight).sum()
    gradients = torch.autograd.grad(value, [mean, log_variance, weight], allow_unused=True)
    assert gradients[0] is None
    assert gradients[1] is None
    assert gradients[2] is not None
