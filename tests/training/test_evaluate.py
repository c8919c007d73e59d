"""How well a trained model explains rows, and tells anomalous ones."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from vaeserve.errors import DataError
from vaeserve.signature import Column, Signature
from vaeserve_training.config import ModelConfig
from vaeserve_training.data import Dataset
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.evaluate import (
    antithetic,
    detection,
    estimate_log_likelihood,
    evaluate_rows,
    scorable_rows,
)
from vaeserve_training.features import TableFeatures, tensors_of
from vaeserve_training.likelihoods import FixedGaussian
from vaeserve_training.prior import StandardNormal
from vaeserve_training.vae import VAE

MIXED = Signature.table([
    Column("colour", "categorical", ("blue", "red"), nullable=True), Column("size", "numeric"),
    Column("weight", "numeric", nullable=True),
])  # fmt: skip


def linear(*, shift: float = 0.0) -> Ensemble:
    """Return the model x = w z + noise of two numbers, with its true posterior, off by `shift`."""
    weight, variance = torch.tensor([[2.0], [1.0]]), 0.25
    precision = 1 + float((weight**2).sum()) / variance
    encoder, decoder = nn.Linear(2, 2), nn.Linear(1, 2)
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([weight.T / variance / precision, torch.zeros(1, 2)]))
        encoder.bias.copy_(torch.tensor([shift, -math.log(precision)]))
        decoder.weight.copy_(weight)
        decoder.bias.zero_()
    features = TableFeatures(Signature.numbers(["a", "b"]), "standard")
    likelihood = FixedGaussian(2, scale=0.5)
    return Ensemble([VAE(features, likelihood, StandardNormal(), encoder=encoder, decoder=decoder, latent_dim=1)])


def rows_of(count: int, *, anomalies: int = 0) -> Dataset:
    """Return rows of the linear model, and then some far from it, labelled."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(count, 1)) * [2.0, 1.0] + 0.5 * generator.normal(size=(count, 2))
    far = generator.normal([4, -4], size=(anomalies, 2))
    anomalous = np.arange(count + anomalies) >= count if anomalies else None
    numeric = np.concatenate([rows, far]).astype(np.float32)
    return Dataset("rows", Signature.numbers(["a", "b"]), {"numeric": numeric}, anomalous)


def exact(rows: NDArray[np.float32]) -> float:
    """Return the mean exact log-likelihood of rows."""
    covariance = torch.tensor([[4.0, 2.0], [2.0, 1.0]]) + 0.25 * torch.eye(2)
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), covariance)
    return float(normal.log_prob(torch.from_numpy(rows)).mean())


def mixed(colours: list[str], numeric: list[list[float]]) -> Dataset:
    """Return rows of the mixed table."""
    arrays = {"categorical": np.array(colours)[:, None], "numeric": np.array(numeric, np.float32)}
    return Dataset("mixed", MIXED, arrays)


def untrained() -> Ensemble:
    """Return a model of the mixed table, fitted to a few rows."""
    config = ModelConfig(likelihood="student_t", network="mlp", latent_dim=2, hidden=(8,), scaling=("standard",))
    ensemble = Ensemble.build(MIXED, config, size=1)
    rows = mixed(["blue", "red", "", "red"], [[1, 2], [2, np.nan], [3, 4], [4, 6]])
    ensemble.member.features.fit(tensors_of(MIXED, rows.inputs))
    return ensemble


@pytest.mark.parametrize("samples", [1, 10])
def test_the_estimate_is_exact_under_the_true_posterior(samples: int) -> None:
    """With the true posterior any number of samples gives log p(x), and the error is that of a mean over rows."""
    dataset = rows_of(500)
    estimate, error = estimate_log_likelihood(linear(), dataset, samples=samples)
    assert estimate == pytest.approx(exact(dataset.inputs["numeric"]), abs=1e-4)
    assert 0.02 < error < 0.1


def test_more_samples_come_nearer_from_below() -> None:
    """With another posterior the estimate rises to log p(x) with the samples: IWAE-1 < IWAE-20 < IWAE-1000."""
    dataset = rows_of(500)
    one, twenty, many = (
        estimate_log_likelihood(linear(shift=0.5), dataset, samples=samples)[0] for samples in (1, 20, 1000)
    )
    truth = exact(dataset.inputs["numeric"])
    assert one + 0.3 < twenty
    assert twenty + 0.05 < many < truth + 0.02
    assert many == pytest.approx(truth, abs=0.1)


def test_an_estimate_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are taken a few at a time have the estimate of all at once, as near as its draws allow."""
    dataset = rows_of(200)
    whole = estimate_log_likelihood(linear(shift=0.3), dataset, samples=200)[0]
    monkeypatch.setattr("vaeserve_training.evaluate.NUMBERS_AT_ONCE", 1000)
    assert estimate_log_likelihood(linear(shift=0.3), dataset, samples=200)[0] == pytest.approx(whole, abs=0.05)


def test_one_row_has_an_estimate(recwarn: pytest.WarningsRecorder) -> None:
    """A single row is estimated without a word of NumPy's or PyTorch's."""
    assert math.isfinite(estimate_log_likelihood(linear(), rows_of(1), samples=10)[0])
    assert not recwarn.list


def test_figures_are_means_over_the_normal_rows() -> None:
    """Anomalous rows have no part in the bounds, and every part in the detection."""
    alone, labelled = evaluate_rows(linear(), rows_of(300)), evaluate_rows(linear(), rows_of(300, anomalies=40))
    for name in ("elbo", "log_likelihood", "kl", "active_units"):
        assert labelled[name] == pytest.approx(alone[name], abs=0.02)
    assert "auroc" not in alone
    assert labelled["auroc"] > 0.99
    assert labelled["average_precision"] > 0.95
    assert labelled["elbo"] == pytest.approx(labelled["log_likelihood"] - labelled["kl"], abs=1e-5)


def test_the_elbo_is_that_of_the_model() -> None:
    """Under the true posterior the reported ELBO is the exact log-likelihood, whatever the seed of its points."""
    dataset = rows_of(3000)
    for seed in range(5):
        elbo = evaluate_rows(linear(), dataset, seed=seed)["elbo"]
        assert elbo == pytest.approx(exact(dataset.inputs["numeric"]), abs=0.1)


def test_labels_only_sort_the_figures() -> None:
    """Turning the labels around turns the detection around, and leaves every row's score alone."""
    dataset = rows_of(50, anomalies=50)
    assert dataset.anomalous is not None
    turned = evaluate_rows(linear(), replace(dataset, anomalous=~dataset.anomalous))
    straight = evaluate_rows(linear(), dataset)
    assert turned["auroc"] == pytest.approx(1 - straight["auroc"])


def test_latents_are_measured() -> None:
    """The linear model's one latent is active and says as much as its channel: 0.5 log(precision)."""
    measured = evaluate_rows(linear(), rows_of(1024))
    assert measured["active_units"] == 1
    assert measured["mutual_information"] == pytest.approx(0.5 * math.log(21), abs=0.1)


def test_missing_values_and_unseen_categories_are_scored() -> None:
    """Where missing values were learned they are scored, and so is a category that wasn't seen."""
    ensemble = untrained()
    dataset = mixed(["blue", "violet", "", "red"], [[1, 2], [2, 3], [3, np.nan], [np.nan, 1]])
    assert scorable_rows(ensemble, dataset).tolist() == [True, True, True, False]
    figures = evaluate_rows(ensemble, dataset)
    assert figures["unscorable"] == 1
    assert all(math.isfinite(value) for value in figures.values())
    three = evaluate_rows(ensemble, dataset[slice(3)])
    assert "unscorable" not in three
    assert figures["kl"] == pytest.approx(three["kl"], rel=1e-5)


def test_rows_that_cannot_be_scored_are_not_ranked() -> None:
    """Their labels don't count in the detection."""
    ensemble = untrained()
    dataset = mixed(["blue", "red", "red", "red"], [[1, 2], [2, 3], [50, 60], [np.nan, 1]])
    labelled = replace(dataset, anomalous=np.array([False, False, True, True]))
    assert evaluate_rows(ensemble, labelled)["auroc"] == 1.0
    only = replace(dataset, anomalous=np.array([False, False, False, True]))
    assert "auroc" not in evaluate_rows(ensemble, only)


def test_no_normal_row_to_score_is_refused() -> None:
    """Where no row is normal and can be scored there is nothing to measure, and that is said."""
    nothing = mixed(["blue", "red"], [[np.nan, 1], [np.nan, 2]])
    with pytest.raises(DataError, match="mixed: none of its 2 rows is normal and can be scored"):
        evaluate_rows(untrained(), nothing)


def test_points_come_in_pairs_of_opposite_ones() -> None:
    """Antithetic points are each other's opposites, differ by seed, and may be odd in number."""
    points, again, others = (antithetic(8, 5, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert points.shape == (8, 5, 3)
    assert torch.equal(points[::2], -points[1::2])
    assert torch.equal(points, again)
    assert not torch.equal(points, others)
    assert antithetic(5, 3, generator=torch.Generator()).shape == (5, 3)


def test_detection_is_scikit_learns() -> None:
    """AUROC and average precision count the pairs that are ranked right; of one kind of rows there are none."""
    scores, anomalous = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert detection(scores, anomalous) == {
        "auroc": pytest.approx(0.75), "average_precision": pytest.approx((1 + 2 / 3) / 2)
    }  # fmt: skip
    assert detection(scores, anomalous & False) == detection(scores, anomalous | True) == {}
