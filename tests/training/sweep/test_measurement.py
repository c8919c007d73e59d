"""Measurements, on a linear model whose posterior, likelihood and prior are known (probabilistic PCA)."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vaeserve.signature import Signature
from vaeserve_training.data import Dataset, Split
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import TableFeatures
from vaeserve_training.likelihoods import FixedGaussian
from vaeserve_training.prior import Exemplars, StandardNormal
from vaeserve_training.sweep.measurement import measure
from vaeserve_training.sweep.shown import CELLS, SHOWN, Shown
from vaeserve_training.sweep.yardstick import Yardstick
from vaeserve_training.vae import VAE

# x = W z + noise: orthogonal columns, so that the posterior's covariance is diagonal.
WEIGHT = torch.tensor([[1.2, 0.5], [-0.6, 1.0], [0.3, 0.0]])
NOISE = 0.4
SIGNATURE = Signature.numbers(["a", "b", "c"])

Measured = Any  # a Measurement, none of whose figures is None here


def linear(*, narrow: float = 1.0, collapsed: bool = False, point: bool = False) -> Ensemble:
    """Return the model with its true posterior, its deviations `narrow` times as wide; or with the prior for it."""
    precision = 1 + WEIGHT.square().sum(0) / NOISE**2  # (latent,)
    encoder, decoder = nn.Linear(3, 4), nn.Linear(2, 3)
    with torch.no_grad():
        mean = torch.zeros(2, 3) if collapsed else WEIGHT.T / NOISE**2 / precision[:, None]
        encoder.weight.copy_(torch.cat([mean, torch.zeros(2, 3)]))
        log_variance = torch.zeros(2) if collapsed else 2 * math.log(narrow) - precision.log()
        encoder.bias.copy_(torch.cat([torch.zeros(2), log_variance]))
        decoder.weight.copy_(torch.zeros(3, 2) if collapsed else WEIGHT)
        decoder.bias.zero_()
    features = TableFeatures(SIGNATURE, "standard", as_is=True)
    likelihood = FixedGaussian(3, scale=NOISE)
    vae = VAE(features, likelihood, StandardNormal(), encoder=encoder, decoder=decoder, latent_dim=2, point=point)
    return Ensemble([vae])


def rows(count: int, seed: int) -> Dataset:
    """Return rows of the model."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(count, 2))
    numeric = z @ WEIGHT.numpy().T + NOISE * generator.normal(size=(count, 3))
    return Dataset("linear", SIGNATURE, {"numeric": numeric.astype(np.float32)})


PARTS = Split(train=rows(4000, 0), validation=rows(10, 1), calibration=rows(1200, 2), test=rows(300, 3))


def measured(ensemble: Ensemble) -> Measured:
    """Measure a model of the rows."""
    return measure(ensemble.member, Yardstick(PARTS, ensemble), seed=0)


@pytest.fixture(scope="module")
def exact() -> Measured:
    """Figures of the true model."""
    return measured(linear())


def covariance() -> torch.Tensor:
    """Return that of the rows."""
    return WEIGHT @ WEIGHT.T + NOISE**2 * torch.eye(3)


def test_the_bound_of_the_true_posterior_is_the_likelihood(exact: Measured) -> None:
    """With the true posterior the ELBO and the IWAE bound are log p(x), in mean the rows' negative entropy."""
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * covariance()))
    assert exact.elbo == pytest.approx(-entropy, abs=4 * math.sqrt(1.5 / 1500))
    assert exact.iwae == pytest.approx(exact.elbo, abs=0.01)
    assert exact.elbo == pytest.approx(exact.log_likelihood - exact.kl, abs=1e-4)
    information = 0.5 * float((1 + WEIGHT.square().sum(0) / NOISE**2).log().sum())
    assert exact.kl == pytest.approx(
        information, abs=0.1
    )  # the mean KL to the aggregate posterior, for that is N(0, I)
    assert exact.mutual_information == pytest.approx(information, abs=0.15)


def test_the_true_model_fills_its_prior(exact: Measured) -> None:
    """The aggregate posterior of the true model is the prior, and its draws are as like the rows as rows are."""
    assert exact.active_units == exact.latent_dim == 2
    assert exact.centre < 0.06
    assert exact.spread == pytest.approx(1, abs=0.04)
    assert 0 < exact.emptiness < 0.1
    assert exact.held_out_log_density == pytest.approx(-math.log(2 * math.pi) - 1, abs=0.15)
    assert exact.sample_quality == pytest.approx(Yardstick(PARTS, linear()).within_reach.quality, abs=0.03)


def test_the_reconstruction_error_is_what_the_posterior_mean_leaves(exact: Measured) -> None:
    """Of x, (I - W A) x is left, A the encoder's map; in standard deviations of the columns."""
    precision = 1 + WEIGHT.square().sum(0) / NOISE**2
    left = torch.eye(3) - WEIGHT @ (WEIGHT.T / NOISE**2 / precision[:, None])
    deviations = covariance().diagonal().sqrt()
    squares = (left @ covariance() @ left.T).diagonal() / deviations.square()
    assert exact.reconstruction_error == pytest.approx(float(squares.mean().sqrt()), rel=0.04)
    assert exact.explained == pytest.approx(1 - float(squares.mean()), abs=0.02)


def test_too_narrow_posteriors_cost_nats_and_leave_gaps(exact: Measured) -> None:
    """Posteriors of a hundredth of the width raise the KL by log 100 each, less what width costs, and lie apart."""
    narrow = measured(linear(narrow=0.01))
    assert narrow.kl == pytest.approx(exact.kl + 2 * math.log(100) - 0.5 * _widths(), abs=0.02)
    assert narrow.elbo < exact.elbo - 5
    assert narrow.emptiness > exact.emptiness + 5
    assert narrow.overlap < 0.01 < 0.5 < exact.overlap
    assert narrow.reconstruction_error == pytest.approx(exact.reconstruction_error, abs=1e-6)


def _widths() -> float:
    """Return the sum of the true posterior's variances, which are what the KL counts for width."""
    return float((1 / (1 + WEIGHT.square().sum(0) / NOISE**2)).sum())


def test_a_collapsed_model_explains_nothing(exact: Measured) -> None:
    """With the prior for every posterior nothing is active or explained, and draws are only noise."""
    collapsed = measured(linear(collapsed=True))
    assert collapsed.active_units == 0
    assert collapsed.kl == pytest.approx(0, abs=1e-6)
    assert collapsed.explained == pytest.approx(0, abs=0.01)
    assert collapsed.emptiness == pytest.approx(0, abs=1e-6)
    assert collapsed.sample_quality < exact.sample_quality - 0.2


def test_a_point_has_no_density() -> None:
    """What a deterministic autoencoder has no meaning for is None; the rest is measured."""
    point = measured(linear(point=True))
    nothing = {name for name, value in vars(point).items() if value is None}
    assert nothing == {
        "elbo", "kl", "iwae", "active_units", "mutual_information", "centre", "spread", "overlap",
        "held_out_log_density", "prior_log_density", "emptiness",
    }  # fmt: skip
    assert point.reconstruction_error == pytest.approx(measured(linear()).reconstruction_error)


def test_rows_over_again_have_no_typical_distance() -> None:
    """Where every held-out row is a training row, distances have no unit, and are None."""
    same = Split(PARTS.test, PARTS.validation, PARTS.test, PARTS.test)
    found = measure(linear().member, Yardstick(same, linear()), seed=0)
    assert found.way_remoteness is None
    assert found.prior_remoteness is None


def test_a_measurement_is_the_same_each_time() -> None:
    """The same model, rows and seed give the same figures, and leave the model's prior as it was."""
    ensemble = linear()
    prior = ensemble.member.prior
    assert measured(ensemble) == measured(ensemble)
    assert ensemble.member.prior is prior


def test_another_prior_of_the_scores_changes_no_figure(exact: Measured) -> None:
    """What rows are scored under isn't what the model was trained under, and it is that which is measured."""
    ensemble = linear()
    ensemble.member.prior = Exemplars.of(torch.full((3, 2), 5.0), torch.zeros(3, 2))
    assert measured(ensemble) == exact


def test_what_is_shown_is_the_models() -> None:
    """Pictures show held-out rows, what is decoded at their codes, and the latent plane as it is."""
    ensemble = linear()
    yardstick = Yardstick(PARTS, ensemble)
    shown = Shown.of(ensemble.member, yardstick, PARTS, seed=0)
    scale = covariance().diagonal().sqrt()
    assert shown.rows == pytest.approx(yardstick.points[:SHOWN].numpy())
    error = np.sqrt(np.square(shown.reconstructions - shown.rows).mean())
    assert error < 3 * measured(ensemble).reconstruction_error
    assert shown.path[0] == pytest.approx(shown.reconstructions[0], abs=1e-5)
    assert shown.path[-1] == pytest.approx(shown.reconstructions[1], abs=1e-5)
    middle = (shown.path[0] + shown.path[-1]) / 2
    assert (shown.path[SHOWN // 2 - 1] + shown.path[SHOWN // 2]) / 2 == pytest.approx(middle, abs=1e-5)
    # The plane is the latent space, so what is decoded in a cell is W times the cell's middle.
    (left, right), (bottom, top) = shown.extent
    z = torch.tensor([left + (right - left) * (CELLS - 0.5) / CELLS, bottom + (top - bottom) * 0.5 / CELLS])
    assert shown.plane[0, -1] == pytest.approx((z @ WEIGHT.T / scale).numpy(), abs=0.1)
    assert shown.plane_remoteness.shape == (CELLS, CELLS)
    assert shown.way_remoteness[0].max() < shown.way_remoteness[2].min()
