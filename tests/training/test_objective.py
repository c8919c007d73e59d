"""The bounds and their parts, against distributions and a model whose log-likelihood is known in closed form."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vaeserve.signature import Column, Signature
from vaeserve_training.config import ModelConfig, ObjectiveConfig
from vaeserve_training.features import Rows, TableFeatures
from vaeserve_training.likelihoods import FixedGaussian
from vaeserve_training.objective import Bounds, bounds, draw, log_likelihood, loss, mean_bounds
from vaeserve_training.prior import StandardNormal, kl_terms
from vaeserve_training.vae import VAE, Posterior

SIGMA = 0.5


@pytest.fixture
def vae() -> VAE:
    """A small model with weights of some size, in double precision."""
    return some_vae()


def some_vae(*, posterior: str = "gaussian") -> VAE:
    """Return a small model of five numbers, with weights of some size, in double precision."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({
        "likelihood": "gaussian", "network": "mlp", "latent_dim": 3, "hidden": (16,), "posterior": posterior,
        "prior": "standard_normal",
    })  # fmt: skip
    model = VAE.build(Signature.numbers([*"abcde"]), config, scaling="standard").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    return model


@pytest.fixture
def rows() -> Rows:
    """Some rows, all of them observed."""
    x = random(6, 5, seed=1)
    return Rows(x, torch.ones_like(x))


def random(*shape: int, seed: int = 2) -> Tensor:
    """Return standard-normal numbers in double precision."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spread(latent_dim: int) -> Tensor:
    """Return points with mean 0 and covariance I, so that a quadratic's mean over them is its expectation."""
    axes = math.sqrt(latent_dim) * torch.eye(latent_dim, dtype=torch.float64)
    return torch.cat([axes, -axes])


def encoder_gradient(vae: VAE, objective: Tensor) -> float:
    """Return how much the encoder has to do with an objective."""
    gradients = torch.autograd.grad(objective, list(vae.encoder.parameters()), allow_unused=True, retain_graph=True)
    return sum(gradient.abs().sum().item() for gradient in gradients if gradient is not None)


def test_the_parts_add_up(vae: VAE, rows: Rows) -> None:
    """The ELBO is the log-likelihood less the KL, and the log-likelihood the sum of the features'."""
    parts = bounds(vae, rows, random(8, 3))
    torch.testing.assert_close(parts.elbo, parts.log_likelihood - parts.kl)
    torch.testing.assert_close(parts.log_likelihood, parts.feature_log_likelihood.sum(1))
    assert parts.feature_log_likelihood.shape == (6, 5)


def test_the_kl_is_the_closed_form(vae: VAE, rows: Rows) -> None:
    """The KL is PyTorch's between the posterior and N(0, I), and meets its Monte Carlo estimate."""
    mean, log_variance = vae.encode(rows)
    posterior = Normal(mean, torch.exp(0.5 * log_variance))
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    kl = bounds(vae, rows, random(1, 3)).kl
    torch.testing.assert_close(kl, kl_divergence(posterior, prior).sum(1))
    z = Posterior(mean, log_variance).sample(random(200_000, 3)).transpose(0, 1)  # (samples, rows, latent)
    estimate = (posterior.log_prob(z) - prior.log_prob(z)).sum(-1)  # (samples, rows)
    error = estimate.std(0) / math.sqrt(len(estimate))
    assert ((estimate.mean(0) - kl).abs() < 4 * error + 1e-9).all()


@given(st.floats(-30, 30), st.floats(-14, 4))
def test_each_dimension_has_its_closed_form(mean: float, log_variance: float) -> None:
    """Every dimension's KL is PyTorch's, for any posterior that the encoder can give, and never below 0."""
    q = Normal(torch.tensor(mean).double(), torch.tensor(0.5 * log_variance).double().exp())
    expected = kl_divergence(q, Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc)))
    kl = kl_terms(q.loc, torch.tensor(log_variance).double())
    torch.testing.assert_close(kl, expected, atol=1e-12, rtol=1e-9)
    assert kl >= -1e-15


def test_the_log_likelihood_is_the_mean_over_samples(vae: VAE, rows: Rows) -> None:
    """The expectation is the plain mean of log p(x|z) over the noise points."""
    points = random(8, 3)
    z = vae.encode(rows).sample(points)
    density = Normal(vae.decode(z), vae.likelihood.log_scale.exp())  # type: ignore[operator]
    expected = density.log_prob(rows.x[:, None]).sum(-1).mean(1)
    torch.testing.assert_close(bounds(vae, rows, points).log_likelihood, expected)


def test_iwae_is_the_log_mean_of_the_weights(vae: VAE, rows: Rows) -> None:
    """The IWAE bound is log (1/K) sum_k p(x, z_k) / q(z_k | x), written out."""
    points = random(8, 3)
    log_weights = weights_of(vae, rows, points)
    expected = torch.logsumexp(log_weights, 1) - math.log(8)
    torch.testing.assert_close(bounds(vae, rows, points).iwae, expected)


def weights_of(vae: VAE, rows: Rows, points: Tensor) -> Tensor:
    """Return log p(x, z) - log q(z|x) by `torch.distributions`, [rows, samples]."""
    mean, log_variance = vae.encode(rows)
    z = Posterior(mean, log_variance).sample(points)
    scale = vae.likelihood.log_scale.exp()  # type: ignore[operator]
    log_joint: Tensor = Normal(vae.decode(z), scale).log_prob(rows.x[:, None]).sum(-1)
    log_joint = log_joint + Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_posterior: Tensor = Normal(mean[:, None], torch.exp(0.5 * log_variance)[:, None]).log_prob(z).sum(-1)
    return log_joint - log_posterior


def test_noise_for_all_rows_is_noise_for_each(vae: VAE, rows: Rows) -> None:
    """Noise of [samples, latent] is the same as a copy of it for each row."""
    points = random(4, 3)
    for shared, repeated in zip(bounds(vae, rows, points), bounds(vae, rows, points.expand(6, 4, 3)), strict=True):
        torch.testing.assert_close(shared, repeated)


def test_gradients_flow_through_the_reparameterized_sample(vae: VAE, rows: Rows) -> None:
    """The log-likelihood's gradient reaches the encoder through mean + sigma * noise, not a plain sample."""
    assert encoder_gradient(vae, bounds(vae, rows, random(6, 1, 3)).log_likelihood.sum()) > 0
    mean, log_variance = vae.encode(rows)
    plain = Normal(mean, torch.exp(0.5 * log_variance)).sample()  # no rsample
    density = vae.likelihood.log_density(rows.x, vae.decode(plain))
    assert encoder_gradient(vae, density.sum() + 0 * mean.sum()) == 0


def test_the_gradient_is_that_of_the_expectation() -> None:
    """The reparameterized gradient, averaged over noise, is the derivative of the expectation, by differences."""
    linear = LinearGaussian()
    x = Rows(linear.rows(3), torch.ones(3, 5, dtype=torch.float64))
    bias = linear.vae.encoder.get_parameter("bias")

    def elbo() -> Tensor:
        return bounds(linear.vae, x, spread(2)).elbo.mean()

    (gradient,) = torch.autograd.grad(elbo(), bias)
    for index in range(len(bias)):
        with torch.no_grad():
            bias[index] += 1e-5
            above = elbo()
            bias[index] -= 2e-5
            below = elbo()
            bias[index] += 1e-5
        assert gradient[index].item() == pytest.approx((above - below).item() / 2e-5, abs=1e-7)


def test_bounds_are_named() -> None:
    """The parts come in the order that the exported scorer names them."""
    assert Bounds._fields == ("elbo", "log_likelihood", "kl", "iwae", "feature_log_likelihood")


class LinearGaussian:
    """x = W z + b + sigma * noise, as a VAE whose encoder gives the true posterior, off by what is asked for.

    W has orthogonal columns, so that the posterior's covariance is diagonal, as an encoder's is.
    """

    def __init__(self, *, shift: float = 0.0, log_variance: float = 0.0) -> None:
        columns, _ = torch.linalg.qr(random(5, 2, seed=3))
        self.weight = columns * torch.tensor([1.5, 0.7])  # (features, latent)
        self.bias = 0.3 * random(5, seed=4)
        precision = 1 + (self.weight**2).sum(0) / SIGMA**2  # (latent,)
        encoder, decoder = nn.Linear(5, 4).double(), nn.Linear(2, 5).double()
        to_mean = (self.weight / SIGMA**2 / precision).T  # (latent, features)
        with torch.no_grad():
            encoder.weight.copy_(torch.cat([to_mean, torch.zeros(2, 5)]))
            encoder.bias.copy_(torch.cat([shift - to_mean @ self.bias, log_variance - torch.log(precision)]))
            decoder.weight.copy_(self.weight)
            decoder.bias.copy_(self.bias)
        self.vae = VAE(
            TableFeatures(Signature.numbers([*"abcde"]), "standard"),
            FixedGaussian(5, scale=SIGMA),
            StandardNormal(),
            encoder=encoder,
            decoder=decoder,
            latent_dim=2,
        ).double()

    def rows(self, count: int) -> Tensor:
        """Draw rows from the model."""
        rows: Tensor = random(count, 2, seed=5) @ self.weight.T + self.bias + SIGMA * random(count, 5, seed=6)
        return rows

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Return log p(x), which is N(b, W W^T + sigma^2 I)."""
        covariance = self.weight @ self.weight.T + SIGMA**2 * torch.eye(5, dtype=torch.float64)
        log_likelihood: Tensor = MultivariateNormal(self.bias, covariance).log_prob(x)
        return log_likelihood


def observed(x: Tensor) -> Rows:
    """Return rows without a gap."""
    return Rows(x, torch.ones_like(x))


@pytest.mark.parametrize("samples", [1, 3, 50])
def test_iwae_is_exact_under_the_true_posterior(samples: int) -> None:
    """Where q(z|x) is p(z|x), the IWAE bound is log p(x) for any number of samples, whatever they are."""
    linear = LinearGaussian()
    x = linear.rows(20)
    iwae = bounds(linear.vae, observed(x), random(20, samples, 2)).iwae
    torch.testing.assert_close(iwae, linear.log_likelihood(x), atol=1e-6, rtol=0)


def test_the_elbo_meets_the_log_likelihood_at_the_optimum() -> None:
    """Where q(z|x) is p(z|x), the ELBO is log p(x); its gradient there is that of log p(x): 0 for the encoder."""
    linear = LinearGaussian()
    x = linear.rows(20)
    elbo = bounds(linear.vae, observed(x), spread(2)).elbo
    torch.testing.assert_close(elbo, linear.log_likelihood(x), atol=1e-6, rtol=0)
    assert encoder_gradient(linear.vae, elbo.mean()) < 1e-5


def test_the_gap_is_the_kl_to_the_true_posterior() -> None:
    """Elsewhere the ELBO falls short of log p(x) by KL(q(z|x) || p(z|x))."""
    true, off = LinearGaussian(), LinearGaussian(shift=0.4, log_variance=0.8)
    x = true.rows(20)
    q, p = (
        Normal(posterior.mean, torch.exp(0.5 * posterior.log_variance))
        for posterior in (off.vae.encode(observed(x)), true.vae.encode(observed(x)))
    )
    gap = true.log_likelihood(x) - bounds(off.vae, observed(x), spread(2)).elbo
    torch.testing.assert_close(gap, kl_divergence(q, p).sum(1), atol=1e-6, rtol=0)
    assert (gap > 0.2).all()


def test_more_samples_make_a_tighter_bound() -> None:
    """ELBO <= IWAE-5 <= IWAE-50 <= log p(x), each by more than its standard error, where q(z|x) isn't p(z|x)."""
    linear = LinearGaussian(shift=0.5, log_variance=0.8)
    x = linear.rows(10)
    draws = 4000

    def iwae(samples: int) -> tuple[Tensor, Tensor]:
        many = observed(x.repeat_interleave(draws, 0))
        values = bounds(linear.vae, many, random(10 * draws, samples, 2)).iwae.reshape(10, draws)
        return values.mean(1), values.std(1) / math.sqrt(draws)

    elbo = bounds(linear.vae, observed(x), spread(2)).elbo
    (iwae_5, error_5), (iwae_50, error_50) = iwae(5), iwae(50)
    assert (elbo < iwae_5 - 4 * error_5).all()
    assert (iwae_5 + 4 * error_5 < iwae_50 - 4 * error_50).all()
    exact = linear.log_likelihood(x)
    assert (iwae_50 < exact + 4 * error_50).all()
    torch.testing.assert_close(iwae_50.mean(), exact.mean(), atol=0.03, rtol=0)


def test_a_missing_entry_takes_its_density_and_nothing_else(vae: VAE, rows: Rows) -> None:
    """A missing entry's density is gone from the sum; what the encoder doesn't see, it doesn't use."""
    mask = torch.ones_like(rows.x)
    mask[0, 2] = mask[3, 0] = mask[3, 4] = 0
    points = random(4, 3)
    whole, masked = bounds(vae, rows, points), bounds(vae, rows._replace(observed=mask), points)
    for row in (1, 2, 4, 5):
        torch.testing.assert_close(masked.elbo[row], whole.elbo[row])
    assert (masked.feature_log_likelihood == 0).nonzero().tolist() == [[0, 2], [3, 0], [3, 4]]
    # With what is decoded the same, the mask removes exactly the density.
    posterior = vae.encode(rows)
    output = draw(vae, points, posterior).output
    density = vae.likelihood.log_density(rows.x[:, None], output) * mask[:, None]
    torch.testing.assert_close(log_likelihood(vae, rows._replace(observed=mask), output), density.sum(-1))


@given(st.floats(-1e15, 1e15))
def test_what_stands_in_for_a_missing_entry_changes_nothing(value: float) -> None:
    """Whatever number lies where there is none, the bounds and every gradient have the same bits."""
    model, points = some_vae(), random(6, 4, 3)
    x = random(6, 5, seed=1)
    mask = torch.ones_like(x)
    mask[0, 2] = mask[3, 0] = mask[3, 4] = 0

    def outcome(stand_in: float) -> list[Tensor]:
        rows = Rows(torch.where(mask > 0, x, stand_in), mask)
        parts = bounds(model, rows, points)
        value = loss(model, rows, points, ObjectiveConfig(), beta=0.7)
        return [*parts, value, *torch.autograd.grad(value, list(model.parameters()))]

    assert all(torch.equal(one, other) for one, other in zip(outcome(0.0), outcome(value), strict=True))


def test_a_missing_category_is_masked_like_a_missing_number() -> None:
    """In a mixed table the gap of a category has no density and its code doesn't matter."""
    columns = [Column("n", "numeric"), Column("c", "categorical", ("x", "y"), nullable=True), Column("b", "binary")]
    config = ModelConfig(likelihood="gaussian", network="mlp", latent_dim=2, hidden=(8,))
    model = VAE.build(Signature.table(columns), config, scaling="standard").double()
    mask = torch.tensor([[1.0, 0.0, 1.0]]).double()
    parts = [bounds(model, Rows(torch.tensor([[0.3, code, 1.0]]).double(), mask), random(4, 2)) for code in (0.0, 1, 2)]
    assert parts[0].feature_log_likelihood[0, 1] == 0
    assert all(torch.equal(one, other) for part in parts[1:] for one, other in zip(parts[0], part, strict=True))
    seen = bounds(model, Rows(torch.tensor([[0.3, 1.0, 1.0]]).double(), torch.ones_like(mask)), random(4, 2))
    assert seen.feature_log_likelihood[0, 1] < 0


def test_the_log_jacobian_adds_to_the_density(vae: VAE, rows: Rows) -> None:
    """What turns the density into that of standard-scaled values is added feature by feature, where observed."""
    mask = torch.ones_like(rows.x)
    mask[2, 1] = 0
    jacobian, points = random(6, 5, seed=7), random(4, 3)
    without = bounds(vae, rows._replace(observed=mask), points)
    with_it = bounds(vae, Rows(rows.x, mask, jacobian), points)
    added = jacobian * mask
    torch.testing.assert_close(with_it.feature_log_likelihood, without.feature_log_likelihood + added)
    torch.testing.assert_close(with_it.iwae, without.iwae + added.sum(1))
    torch.testing.assert_close(with_it.kl, without.kl)


def test_the_mean_of_the_members_is_the_mean_of_each_part(vae: VAE, rows: Rows) -> None:
    """An ensemble's bounds and parts are the plain means of its members', and one member's are its own."""
    parts = [bounds(vae, rows, random(4, 3, seed=seed)) for seed in range(3)]
    for mean, members in zip(mean_bounds(parts), zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(mean, torch.stack(list(members)).mean(0))
    assert mean_bounds(parts[:1]) is parts[0]


def test_the_loss_is_minus_the_elbo(vae: VAE, rows: Rows) -> None:
    """At beta 1 and without free bits the loss is minus the mean ELBO of the same noise."""
    points = random(6, 4, 3)
    torch.testing.assert_close(
        loss(vae, rows, points, ObjectiveConfig(), beta=1.0), -bounds(vae, rows, points).elbo.mean()
    )


@given(st.floats(0, 10))
def test_beta_weighs_the_kl_alone(beta: float) -> None:
    """The loss is beta times the KL less the log-likelihood."""
    model, points, x = some_vae(), random(6, 4, 3), random(6, 5, seed=1)
    parts = bounds(model, observed(x), points)
    expected = beta * parts.kl.mean() - parts.log_likelihood.mean()
    torch.testing.assert_close(loss(model, observed(x), points, ObjectiveConfig(), beta=beta), expected)


def gradients_of(model: VAE, value: Tensor) -> list[Tensor]:
    """Return the gradients of all parameters, 0 for those that have no part in it."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]


def test_free_bits_below_every_kl_change_nothing(vae: VAE, rows: Rows) -> None:
    """With fewer free bits than any dimension's KL, the loss and its gradients are those without."""
    points = random(6, 4, 3)
    least = kl_terms(*vae.encode(rows)).mean(0).min().item()
    with_them = loss(vae, rows, points, ObjectiveConfig(free_bits=0.9 * least), beta=0.8)
    without = loss(vae, rows, points, ObjectiveConfig(), beta=0.8)
    assert torch.equal(with_them, without)
    for one, other in zip(gradients_of(vae, with_them), gradients_of(vae, without), strict=True):
        assert torch.equal(one, other)


def test_free_bits_above_every_kl_leave_the_log_likelihood_alone(vae: VAE, rows: Rows) -> None:
    """With more free bits than any dimension's KL, the loss counts them, and its gradient is the log-likelihood's."""
    points = random(6, 4, 3)
    free = 2 * kl_terms(*vae.encode(rows)).mean(0).max().item()
    value = loss(vae, rows, points, ObjectiveConfig(free_bits=free), beta=0.8)
    expected = 0.8 * 3 * free - bounds(vae, rows, points).log_likelihood.mean()
    torch.testing.assert_close(value, expected)
    for one, other in zip(gradients_of(vae, value), gradients_of(vae, expected), strict=True):
        torch.testing.assert_close(one, other)


def test_free_bits_count_for_each_dimension_apart(vae: VAE, rows: Rows) -> None:
    """Between the dimensions' KLs, only those below it are lifted to the free bits."""
    points = random(6, 4, 3)
    kl = kl_terms(*vae.encode(rows)).mean(0)
    free = kl.median().item()
    value = loss(vae, rows, points, ObjectiveConfig(free_bits=free), beta=1.0)
    assert kl.min() < free < kl.max()
    expected = kl.clamp(min=free).sum() - bounds(vae, rows, points).log_likelihood.mean()
    torch.testing.assert_close(value, expected)


def test_the_iwae_loss_is_minus_the_iwae_bound(vae: VAE, rows: Rows) -> None:
    """With bound = iwae the loss is minus the mean IWAE bound; of one sample, minus its weight's logarithm."""
    config = ObjectiveConfig(bound="iwae")
    points = random(6, 7, 3)
    torch.testing.assert_close(loss(vae, rows, points, config, beta=1.0), -bounds(vae, rows, points).iwae.mean())
    one = random(6, 1, 3)
    torch.testing.assert_close(loss(vae, rows, one, config, beta=1.0), -weights_of(vae, rows, one).mean())


def test_the_iwae_loss_of_one_sample_is_the_elbo_in_expectation() -> None:
    """At K = 1, over points that make expectations exact, the IWAE loss is the ELBO's and so is its gradient."""
    linear = LinearGaussian(shift=0.4, log_variance=0.5)
    x = linear.rows(6)
    points = spread(2)
    many = observed(x.repeat(len(points), 1))
    each = points.repeat_interleave(6, 0)[:, None]  # (rows, 1, latent)
    values = [
        loss(linear.vae, many, each, ObjectiveConfig(bound="iwae"), beta=1.0),
        loss(linear.vae, observed(x), points, ObjectiveConfig(), beta=1.0),
    ]
    torch.testing.assert_close(values[0], values[1])
    for one, other in zip(*(gradients_of(linear.vae, value) for value in values), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-7)


def test_noise_on_the_input_goes_to_the_encoder_alone(vae: VAE, rows: Rows) -> None:
    """What the encoder sees decides the posterior; what is explained are the rows as they are."""
    points = random(6, 4, 3)
    noisy = rows._replace(x=rows.x + 0.5 * random(6, 5, seed=8))
    config = ObjectiveConfig()
    posterior = vae.encode(noisy)
    density = vae.likelihood.log_density(rows.x[:, None], vae.decode(posterior.sample(points))).sum(-1)
    expected = kl_terms(*posterior).sum(1).mean() - density.mean()
    torch.testing.assert_close(loss(vae, rows, points, config, beta=1.0, seen=noisy), expected)
    assert not torch.allclose(expected, loss(vae, noisy, points, config, beta=1.0))
    assert torch.equal(loss(vae, rows, points, config, beta=1.0, seen=rows), loss(vae, rows, points, config, beta=1.0))


def test_a_point_posterior_makes_a_deterministic_autoencoder(rows: Rows) -> None:
    """It has no KL, doesn't look at the noise, and its loss is minus the reconstruction's log-density."""
    model = some_vae(posterior="point")
    one, other = (bounds(model, rows, random(4, 3, seed=seed)) for seed in (1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert (one.kl == 0).all()
    density = model.likelihood.log_density(rows.x, model.decode(model.encode(rows).mean)).sum(1)
    torch.testing.assert_close(one.elbo, density)
    torch.testing.assert_close(one.iwae, density)
    for beta in (0.0, 5.0):
        torch.testing.assert_close(loss(model, rows, random(6, 1, 3), ObjectiveConfig(), beta=beta), -density.mean())


def test_members_bound_their_mixture(vae: VAE, rows: Rows) -> None:
    """The mean of bounds is at most the bound of the equal mixture of the members' densities (Jensen)."""
    members: Sequence[Callable[[], LinearGaussian]] = (LinearGaussian, lambda: LinearGaussian(shift=0.3))
    x = LinearGaussian().rows(10)
    parts = [bounds(make().vae, observed(x), spread(2)) for make in members]
    mixture = torch.logsumexp(torch.stack([make().log_likelihood(x) for make in members]), 0) - math.log(2)
    assert (mean_bounds(parts).elbo <= mixture).all()
    assert len(bounds(vae, rows, random(2, 3)).elbo) == 6


@pytest.mark.parametrize("bound", ["elbo", "iwae"])
def test_trimmed_rows_do_not_count(vae: VAE, rows: Rows, bound: Literal["elbo", "iwae"]) -> None:
    """Of six rows, trimming a third leaves the loss and the gradients of the four with the lowest losses."""
    points, config = random(6, 4, 3), ObjectiveConfig(bound=bound)
    each = torch.stack([loss(vae, rows.pick(slice(i, i + 1)), points[i : i + 1], config, beta=0.8) for i in range(6)])
    best = each.argsort()[:4]
    trimmed = loss(vae, rows, points, config, beta=0.8, trim=1 / 3)
    expected = loss(vae, rows.pick(best), points[best], config, beta=0.8)
    torch.testing.assert_close(trimmed, expected)
    for one, other in zip(gradients_of(vae, trimmed), gradients_of(vae, expected), strict=True):
        torch.testing.assert_close(one, other)
