"""The likelihoods' densities against SciPy's and PyTorch's own distributions, their samplers against their means."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vaeserve_training.likelihoods import (
    LARGEST_LOGIT,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    FixedGaussian,
    Gaussian,
    Likelihood,
    LocationScale,
    Mixed,
    StudentT,
)
from vaeserve_training.logarithms import log, log1p, softplus
from vaeserve_training.scales import LearnedScale

LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "gaussian": lambda: Gaussian(3, floor=0.1),
    "gaussian shared": lambda: Gaussian(3, floor=0.1, shared=True),
    "gaussian_fixed": lambda: FixedGaussian(3, scale=0.5),
    "student_t": lambda: StudentT(3, floor=0.1),
    "student_t shared": lambda: StudentT(3, floor=0.1, degrees=4.5, shared=True),
    "discretized_logistic": lambda: DiscretizedLogistic(3, floor=math.exp(-3), levels=17),
    "bernoulli": lambda: Bernoulli(3),
    "continuous_bernoulli": lambda: ContinuousBernoulli(3),
    "categorical": lambda: Categorical([2, 5, 3]),
    "mixed": lambda: Mixed([([2], Bernoulli(1)), ([1], Categorical([4])), ([0], StudentT(1, floor=0.1))]),
}


def likelihood_of(name: str) -> Likelihood:
    """Return a likelihood in double precision, with learned scales that differ."""
    return spread_scales(LIKELIHOODS[name]().double())


def spread_scales(likelihood: Likelihood) -> Likelihood:
    """Set a likelihood's learned scales apart from each other."""
    for module in likelihood.modules():
        if isinstance(module, LearnedScale):
            with torch.no_grad():
                module.raw.copy_(torch.linspace(-3, 0.5, len(module.raw)))
    return likelihood


def doubles(*values: float) -> Tensor:
    """Return values in double precision."""
    return torch.tensor(values, dtype=torch.float64)


def sum_over(support: Tensor, density: Tensor) -> Tensor:
    """Return the integral of exp(density) over evenly spaced points of the first axis, by the trapezoidal rule."""
    return torch.trapezoid(density.exp(), support, dim=0)


WIDE = torch.cat([-torch.logspace(15, -3, 60), torch.zeros(1), torch.logspace(-3, 15, 60)]).double()[:, None]


def test_gaussian_log_density_is_the_normals() -> None:
    """The Gaussian's log-density is that of a normal with the learned scale, in nats, however far out."""
    likelihood = likelihood_of("gaussian")
    assert isinstance(likelihood, Gaussian)
    output = torch.randn(121, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(output, likelihood.log_scale.exp()).log_prob(WIDE)
    torch.testing.assert_close(likelihood.log_density(WIDE, output), expected)


def test_fixed_gaussian_is_the_squared_error() -> None:
    """The Gaussian of a given scale is a normal, at scale 1 half the squared error up to a constant."""
    x, output = torch.randn(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(output, 0.5).log_prob(x)
    torch.testing.assert_close(likelihood_of("gaussian_fixed").log_density(x, output), expected)
    one = FixedGaussian(3)
    torch.testing.assert_close(one.log_density(x, output) - one.log_density(x, x), -0.5 * (x - output) ** 2)
    assert not list(one.parameters())


@pytest.mark.parametrize("degrees", [1.0, 2.5, 10.0, 100.0])
def test_student_t_log_density_is_scipys(degrees: float) -> None:
    """Student's t has SciPy's log-density, however far out."""
    likelihood = spread_scales(StudentT(3, degrees=degrees, floor=0.1).double())
    assert isinstance(likelihood, StudentT)
    output = torch.randn(121, 3, dtype=torch.float64)
    scale = likelihood.log_scale.exp().detach().numpy()
    expected = scipy.stats.t.logpdf(WIDE.numpy(), degrees, loc=output.numpy(), scale=scale)
    torch.testing.assert_close(likelihood.log_density(WIDE, output).detach(), torch.from_numpy(expected))


def test_discretized_logistic_is_the_logistics_mass_on_a_grid() -> None:
    """Each grid point has its bin's mass of the logistic, the ends all beyond them, also deep in the tails."""
    likelihood = likelihood_of("discretized_logistic")
    assert isinstance(likelihood, DiscretizedLogistic)
    grid = torch.arange(17, dtype=torch.float64)[:, None] / 16
    scale = likelihood.log_scale.exp().detach().numpy()
    for location in (-2.0, 0.0, 0.3, 0.5, 1.0, 1.7):
        inner = (np.arange(1, 17)[:, None] / 16 - 1 / 32 - location) / scale
        end = np.full((1, 3), np.inf)
        lower, upper = np.vstack([-end, inner]), np.vstack([inner, end])
        # On the side where the cumulative probabilities are small, their difference is exact.
        left = scipy.stats.logistic.cdf(upper) - scipy.stats.logistic.cdf(lower)
        right = scipy.stats.logistic.sf(lower) - scipy.stats.logistic.sf(upper)
        expected = np.log(np.where(lower < 0, left, right))
        density = likelihood.log_density(grid, torch.full((17, 3), location, dtype=torch.float64)).detach()
        torch.testing.assert_close(density, torch.from_numpy(expected), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("floor", [1e-6, math.exp(-6), 0.9])
@pytest.mark.parametrize("levels", [2, 3, 256])
def test_the_masses_of_a_discretized_logistic_sum_to_one(levels: int, floor: float) -> None:
    """The probabilities of all levels sum to one, however narrow the logistic."""
    likelihood = DiscretizedLogistic(1, levels=levels, floor=floor).double()
    grid = torch.arange(levels, dtype=torch.float64)[:, None] / (levels - 1)
    for raw in (-30.0, -2.0, 0.0, 30.0):
        with torch.no_grad():
            likelihood.get_parameter("scale.raw").fill_(raw)
        for location in (-0.5, 0.0, 0.4999, 1.0, 9.0):
            total = likelihood.log_density(grid, torch.full((levels, 1), location, dtype=torch.float64)).exp().sum()
            assert total.item() == pytest.approx(1, abs=1e-8)


def test_bernoulli_log_density_is_the_cross_entropy() -> None:
    """Bernoulli's log-density is minus the binary cross-entropy, for bits as for grey levels."""
    x = torch.rand(7, 3, dtype=torch.float64)
    x[:3] = (x[:3] > 0.5).double()
    output = 10 * torch.randn(7, 3, dtype=torch.float64)
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(output, x, reduction="none")
    torch.testing.assert_close(Bernoulli(3).log_density(x, output), expected)
    bits = torch.distributions.Bernoulli(logits=output[:3]).log_prob(x[:3])
    torch.testing.assert_close(Bernoulli(3).log_density(x[:3], output[:3]), bits)


LOGITS = doubles(-59, -40, -9, -2, -1.001, -0.999, -0.1, -1e-3, -1e-9, 0, 1e-6, 1e-3, 0.5, 0.999, 1.001, 3, 30, 59)


def unbounded(logits: Tensor) -> Tensor:
    """Return the output that stands for these logits of a continuous Bernoulli."""
    return LARGEST_LOGIT * torch.atanh(logits / LARGEST_LOGIT)


def test_continuous_bernoulli_log_density_is_normalized_and_pytorchs() -> None:
    """It integrates to one, and has PyTorch's log-density, around logits of 0 as far from them."""
    x = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    likelihood = ContinuousBernoulli(len(LOGITS))
    density = likelihood.log_density(x, unbounded(LOGITS))
    torch.testing.assert_close(sum_over(x, density), torch.ones_like(LOGITS), rtol=2e-6, atol=0)
    # PyTorch's clamps the probability; its own formula is exact within its limits.
    inside = (LOGITS.abs() > 0.99) & (LOGITS.abs() < 30)
    expected = torch.distributions.ContinuousBernoulli(logits=LOGITS[inside]).log_prob(x)
    torch.testing.assert_close(density[:, inside], expected, rtol=1e-7, atol=1e-7)


def test_continuous_bernoullis_mean_is_its_integral() -> None:
    """The mean is the integral of x p(x), around logits of 0 as far from them."""
    x = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None]
    likelihood = ContinuousBernoulli(len(LOGITS))
    output = unbounded(LOGITS)
    integral = torch.trapezoid(x * likelihood.log_density(x, output).exp(), x, dim=0)
    torch.testing.assert_close(likelihood.mean(output), integral, rtol=3e-6, atol=3e-8)


def test_the_logits_of_a_continuous_bernoulli_are_held_in() -> None:
    """However large the output, the logits stay within their limit, and small ones are nearly the output."""
    logits = ContinuousBernoulli(3).parameters_of(doubles(-1e6, 1.0, 1e6))["logits"]
    torch.testing.assert_close(logits, doubles(-LARGEST_LOGIT, 1.0, LARGEST_LOGIT), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", "discretized_logistic"])
def test_what_lies_outside_the_unit_interval_ranks_as_an_anomaly(name: str) -> None:
    """A value outside [0, 1] is less likely than its end, by 1000 nats a unit, whatever the output."""
    likelihood = likelihood_of(name)
    x = doubles(-1e15, -0.1, 0.0, 1.0, 1.1, 1e15)[:, None]
    for output in (-50.0, 0.0, 50.0):
        density = likelihood.log_density(x, torch.full((6, 3), output, dtype=torch.float64))
        assert torch.isfinite(density).all()
        torch.testing.assert_close(density[1], density[2] - 100)
        torch.testing.assert_close(density[4], density[3] - 100)
        torch.testing.assert_close(density[[0, 5]], torch.full((2, 3), -1e18, dtype=torch.float64))


def test_categorical_log_density_is_the_floored_softmaxs() -> None:
    """A code has its softmax probability, less what is spread over all codes, the unseen one among them."""
    likelihood = Categorical([2, 3], unseen=0.01).double()
    output = 3 * torch.randn(50, likelihood.outputs, dtype=torch.float64)
    first, second = 0.99 * output[:, :3].softmax(-1) + 0.01 / 3, 0.99 * output[:, 3:].softmax(-1) + 0.01 / 4
    for codes in ((0, 0), (1, 3), (2, 2)):
        expected = torch.stack([first[:, codes[0]], second[:, codes[1]]], -1).log()
        torch.testing.assert_close(likelihood.log_density(doubles(*codes), output), expected)
    torch.testing.assert_close(likelihood.parameters_of(output)["probabilities"], torch.cat([first, second], -1))


def test_no_category_is_less_likely_than_the_floor() -> None:
    """The log-probability of what the network rules out is that of its share of `unseen`, and no less."""
    likelihood = Categorical([4], unseen=1e-3).double()
    output = doubles(0, -1e4, 1e4, 0, -300)
    density = likelihood.log_density(torch.arange(5).double()[:, None], output)
    floor = math.log(1e-3 / 5)
    torch.testing.assert_close(density[:, 0], doubles(floor, floor, math.log1p(-1e-3 + 1e-3 / 5), floor, floor))


@pytest.mark.parametrize("code", [-1.0, 2.0, 3.0, 1e15, -1e15])
def test_what_is_no_code_counts_as_unseen(code: float) -> None:
    """A value that is no known code has the unseen category's probability."""
    likelihood, output = Categorical([2]).double(), doubles(1.0, 2.0, -3.0)
    expected = likelihood.parameters_of(output)["probabilities"][2:].log()
    torch.testing.assert_close(likelihood.log_density(doubles(code), output), expected)


def test_the_mean_of_a_categorical_is_the_likeliest_known_code() -> None:
    """Each feature's mean is the code of its largest logit, the last one, of what training never saw, aside."""
    likelihood = Categorical([1, 3]).double()
    output = torch.stack([doubles(0, 1, 5, 4, 3, 2), doubles(1, 0, 0, 2, 1, 9)])
    assert likelihood.mean(output).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_mean_log_density_is_the_mean_of_log_densities(name: str) -> None:
    """Whatever of it stands outside the mean over the samples, it is the same number, far out too."""
    likelihood, generator = likelihood_of(name), torch.Generator().manual_seed(0)
    x = torch.cat([torch.rand(6, 3, generator=generator).double().round(), WIDE.repeat(1, 3)])
    output = torch.randn(len(x), 4, likelihood.outputs, generator=generator, dtype=torch.float64)
    expected = likelihood.log_density(x[:, None], output).mean(1)
    torch.testing.assert_close(likelihood.mean_log_density(x, output), expected)


def test_a_mixed_likelihood_keeps_the_order_of_features() -> None:
    """Densities, means, samples and parameters are the parts', each at its features' places."""
    groups: list[tuple[Sequence[int], Likelihood]] = [
        ([4, 1], StudentT(2, floor=0.1)),
        ([0], Categorical([3])),
        ([2, 3], Bernoulli(2)),
    ]
    likelihood = Mixed(groups).double()
    assert (likelihood.features, likelihood.outputs) == (5, 8)
    assert set(likelihood.state_dict()) == {"parts.0.scale.raw"}
    output = torch.randn(6, 8, dtype=torch.float64)
    x = torch.stack([doubles(2, -0.7, 0, 1, 3.5)] * 6)
    parts = output.split([2, 4, 2], -1)
    density, mean = likelihood.log_density(x, output), likelihood.mean(output)
    for (places, part), mine in zip(groups, parts, strict=True):
        torch.testing.assert_close(density[:, places], part.log_density(x[:, places], mine))
        torch.testing.assert_close(mean[:, places], part.mean(mine))
        for name, value in part.parameters_of(mine).items():
            torch.testing.assert_close(likelihood.parameters_of(output)[f"{part.name}/{name}"], value)
    sample = likelihood.sample(output, torch.Generator().manual_seed(0))
    one, other = torch.Generator().manual_seed(0), [part for _, part in groups]
    drawn = [part.sample(mine, one) for part, mine in zip(other, parts, strict=True)]
    torch.testing.assert_close(sample[:, [4, 1, 0, 2, 3]], torch.cat(drawn, -1))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([([0, 2], Bernoulli(2))], "each feature once"),
        ([([0, 0], Bernoulli(2))], "each feature once"),
        ([([0], Bernoulli(1)), ([1], Bernoulli(1))], "different likelihoods"),
        ([([0, 1], Bernoulli(3))], "takes 3"),
    ],
)
def test_a_mixed_likelihood_refuses_what_is_no_partition(
    parts: list[tuple[list[int], Likelihood]], message: str
) -> None:
    """Groups must hold each feature once, as many as their likelihoods take, and no likelihood twice."""
    with pytest.raises(ValueError, match=message):
        Mixed(parts)


@pytest.mark.parametrize("raw", [-1e4, -1.0, 0.0, 1.0, 1e4])
def test_a_learned_scale_stays_within_its_bounds(raw: float) -> None:
    """It starts at 1, and however far its parameter runs, it lies between floor and ceiling."""
    scale = LearnedScale(1, floor=0.5, ceiling=4.0, shared=False)
    assert scale().exp().item() == pytest.approx(1.0)
    with torch.no_grad():
        scale.raw.fill_(raw)
    assert 0.5 - 1e-6 <= scale().exp().item() <= 4.0 + 1e-6


@pytest.mark.parametrize(("floor", "ceiling"), [(0.0, 2.0), (1.5, 2.0), (0.1, 0.9)])
def test_a_learned_scale_can_start_at_one(floor: float, ceiling: float) -> None:
    """Bounds that don't hold 1 between them are refused."""
    with pytest.raises(ValueError, match="expected 0 < floor < 1 < ceiling"):
        LearnedScale(1, floor=floor, ceiling=ceiling, shared=False)


@pytest.mark.parametrize("likelihood", [Gaussian, StudentT, DiscretizedLogistic])
def test_features_share_a_scale_or_have_their_own(likelihood: type[Gaussian]) -> None:
    """A shared scale is one parameter, otherwise there is one a feature; both are reported for each feature."""
    for shared, count in ((True, 1), (False, 5)):
        made = likelihood(5, floor=0.1, shared=shared)
        assert [tuple(parameter.shape) for parameter in made.parameters()] == [(count,)]
        assert made.parameters_of(torch.zeros(2, 5))["scale"].shape == (2, 5)


@pytest.mark.parametrize("name", sorted(LIKELIHOODS.keys() - {"categorical", "mixed", "discretized_logistic"}))
def test_samples_have_the_likelihoods_mean(name: str) -> None:
    """Many samples average to the mean that the decoder's output stands for."""
    likelihood, output = likelihood_of(name), doubles(-1, 0, 2)
    samples = likelihood.sample(output.expand(100_000, 3), torch.Generator().manual_seed(0))
    torch.testing.assert_close(samples.mean(0), likelihood.mean(output), atol=0.03, rtol=0)


@pytest.mark.parametrize("name", ["gaussian", "gaussian_fixed", "student_t"])
def test_samples_have_the_distributions_quantiles(name: str) -> None:
    """The share of samples below a point is the cumulative probability there."""
    likelihood, output = likelihood_of(name), doubles(-1, 0, 2)
    assert isinstance(likelihood, LocationScale)
    samples = likelihood.sample(output.expand(100_000, 3), torch.Generator().manual_seed(0)).detach().numpy()
    scale = likelihood.log_scale.exp().detach().numpy()
    standard = scipy.stats.t(10) if name == "student_t" else scipy.stats.norm()
    for feature, location in enumerate(output.tolist()):
        frozen = (samples[:, feature] - location) / (scale[feature] if len(scale) > 1 else scale[0])
        assert scipy.stats.kstest(frozen, standard.cdf).pvalue > 1e-3


def test_samples_of_a_continuous_bernoulli_have_its_distribution() -> None:
    """The share of samples below a point is the cumulative probability there, near logits of 0 too."""
    logits = doubles(-59, -3, -1e-2, 0, 1e-4, 1, 40)
    likelihood = ContinuousBernoulli(7)
    samples = likelihood.sample(unbounded(logits).expand(50_000, 7), torch.Generator().manual_seed(0)).numpy()
    for feature, logit in enumerate(logits.tolist()):

        def cdf(x: np.ndarray, logit: float = logit) -> np.ndarray:
            return x if abs(logit) < 1e-3 else np.expm1(x * logit) / np.expm1(logit)

        assert scipy.stats.kstest(samples[:, feature], cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["discretized_logistic", "categorical"])
def test_samples_have_the_probabilities_of_their_values(name: str) -> None:
    """Each value of a discrete distribution is drawn as often as its probability says."""
    likelihood = likelihood_of(name)
    output = torch.linspace(-0.2, 0.9, likelihood.outputs, dtype=torch.float64)
    samples = likelihood.sample(output.expand(100_000, likelihood.outputs), torch.Generator().manual_seed(0))
    values = torch.arange(17, dtype=torch.float64) / 16 if name == "discretized_logistic" else torch.arange(6).double()
    for value in values:
        wanted = likelihood.log_density(value.expand(3), output).exp()
        if name == "categorical":
            wanted = torch.where(value <= doubles(2, 5, 3), wanted, 0.0)
        torch.testing.assert_close((samples == value).double().mean(0), wanted, atol=0.006, rtol=0)


def test_parameters_have_their_usual_names() -> None:
    """Each likelihood names its parameters as its distribution does, one for each feature or output."""
    expected = {
        "gaussian": {"loc": 3, "scale": 3},
        "gaussian_fixed": {"loc": 3, "scale": 3},
        "student_t": {"degrees": 3, "loc": 3, "scale": 3},
        "discretized_logistic": {"loc": 3, "scale": 3},
        "bernoulli": {"logits": 3},
        "continuous_bernoulli": {"logits": 3},
        "categorical": {"probabilities": 13},
        "mixed": {
            "bernoulli/logits": 1,
            "categorical/probabilities": 5,
            "student_t/degrees": 1,
            "student_t/loc": 1,
            "student_t/scale": 1,
        },
    }
    for name, sizes in expected.items():
        likelihood = likelihood_of(name)
        assert likelihood.name == name
        parameters = likelihood.parameters_of(torch.zeros(2, likelihood.outputs, dtype=torch.float64))
        assert {key: tuple(value.shape) for key, value in parameters.items()} == {
            key: (2, size) for key, size in sizes.items()
        }


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_densities_and_gradients_are_finite_at_extremes(name: str) -> None:
    """Any finite row and output have a finite log-density and finite gradients, in single precision."""
    likelihood = LIKELIHOODS[name]()
    values = torch.tensor([0.0, 1e-30, 0.5, 1.0, -1.0, 30.0, -1e4, 1e15, -1e15])
    x, at = torch.cartesian_prod(values, torch.tensor([0.0, 1e-9, 0.5, 1.0, 1.0001, -60.0, 88.0, -1e4, 1e4])).unbind(-1)
    output = at[:, None].repeat(1, likelihood.outputs).requires_grad_()
    density = likelihood.log_density(x[:, None].expand(-1, 3), output)
    assert density.shape == (len(x), 3)
    assert torch.isfinite(density).all()
    (density / (1 + density.detach().abs())).sum().backward()
    for gradient in (output.grad, *(parameter.grad for parameter in likelihood.parameters())):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    """The log-density's derivatives by output and learned scale are the slopes that it has."""
    likelihood = likelihood_of(name)
    x = torch.tensor([[0.0, 1.0, 1.0], [0.25, 0.0, 1.0]], dtype=torch.float64)
    output = torch.tensor([[-2.0], [0.3]], dtype=torch.float64).repeat(1, likelihood.outputs) + torch.linspace(
        0, 1, likelihood.outputs, dtype=torch.float64
    )
    parameters = dict(likelihood.named_parameters())

    def density(output: Tensor, *values: Tensor) -> Tensor:
        state = dict(zip(parameters, values, strict=True))
        density: Tensor = torch.func.functional_call(likelihood, state, (x, output)) if state else likelihood(x, output)
        return density

    likelihood.forward = likelihood.log_density
    torch.autograd.gradcheck(density, (output.requires_grad_(), *parameters.values()))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_an_ensembles_likelihoods_run_under_vmap(name: str) -> None:
    """Stacked members give by vmap what each gives alone."""
    members = [likelihood_of(name) for _ in range(3)]
    for index, member in enumerate(members):
        for parameter in member.parameters():
            parameter.data += index
        member.forward = member.log_density
    state = torch.func.stack_module_state(members)
    x, output = torch.rand(5, 1, 3).double().round(), torch.randn(3, 5, 2, members[0].outputs).double()

    def density(parameters: dict[str, Tensor], buffers: dict[str, Tensor], output: Tensor) -> Tensor:
        density: Tensor = torch.func.functional_call(members[0], (parameters, buffers), (x, output))
        return density

    together = torch.func.vmap(density)(*state, output)
    alone = torch.stack([member.log_density(x, mine) for member, mine in zip(members, output, strict=True)])
    torch.testing.assert_close(together, alone)


@given(st.floats(-300, 300))
def test_softplus_is_right(value: float) -> None:
    """Softplus is the logarithm of one and the exponential, without overflow."""
    expected = max(value, 0.0) + math.log1p(math.exp(-abs(value)))
    assert softplus(doubles(value)).item() == pytest.approx(expected, rel=1e-12)


@given(st.floats(-30, 30))
def test_logarithms_are_right(exponent: float) -> None:
    """In training the logarithms are PyTorch's own, with their precision near 0."""
    value = 10.0**exponent
    assert log1p(doubles(value)).item() == pytest.approx(math.log1p(value), rel=1e-14)
    assert log(doubles(value)).item() == pytest.approx(math.log(value), rel=1e-14, abs=1e-15)
