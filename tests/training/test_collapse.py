"""Posterior collapse: measured on posteriors made by hand, and warned of."""

import math

import pytest
import torch
from torch import Tensor

from vaeserve_training.collapse import ACTIVE_VARIANCE, INFORMATION_ROWS, usage, warnings_of
from vaeserve_training.config import ObjectiveConfig
from vaeserve_training.vae import Posterior


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return standard-normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_dimension_is_active_if_its_mean_varies() -> None:
    """Active are the dimensions whose mean varies by more than 0.01 over rows, whatever their variance and place."""
    rows = 4000
    scales = torch.tensor([0.0, 0.05, 0.2, 1.0, 3.0])
    mean = scales * random(rows, 5) + torch.tensor([7.0, 0.0, 0.0, 0.0, -5.0])
    assert (mean.var(0) > ACTIVE_VARIANCE).tolist() == [False, False, True, True, True]
    assert usage(Posterior(mean, random(rows, 5)), random(rows, 5, seed=1)).active_units == 3


def test_a_collapsed_posterior_says_nothing() -> None:
    """Where every row has the prior for its posterior, nothing is active, and all KLs and the information are 0."""
    measured = usage(Posterior(torch.zeros(100, 3), torch.zeros(100, 3)), random(100, 3))
    assert measured.active_units == 0
    assert measured.latent_kl == [0.0, 0.0, 0.0]
    assert measured.mutual_information == pytest.approx(0.0, abs=1e-9)


def test_the_same_posterior_for_all_rows_has_a_kl_but_no_information() -> None:
    """A posterior that isn't the prior but the same for all rows costs nats and tells nothing."""
    measured = usage(Posterior(torch.full((100, 2), 2.0), torch.full((100, 2), -1.0)), random(100, 2))
    assert measured.latent_kl == pytest.approx([0.5 * (math.exp(-1) + 4 - 1 + 1)] * 2)
    assert measured.active_units == 0
    assert measured.mutual_information == pytest.approx(0.0, abs=1e-9)


def test_the_kl_is_told_for_each_dimension() -> None:
    """Each dimension's KL is its mean over rows."""
    mean = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    measured = usage(Posterior(mean, torch.tensor([[0.0, 0.0], [0.0, 2.0]])), random(2, 2))
    assert measured.latent_kl == pytest.approx([0.5 * (1 + 9) / 2, 0.5 * (math.exp(2) - 1 - 2) / 2])


def test_the_information_of_a_gaussian_channel_is_its_capacity() -> None:
    """With means N(0, 1) and noise of variance s, I(x; z) is 0.5 log(1 + 1 / s) a dimension."""
    variance = 0.25
    mean = random(INFORMATION_ROWS, 2)
    posterior = Posterior(mean, torch.full_like(mean, math.log(variance)))
    measured = usage(posterior, random(INFORMATION_ROWS, 2, seed=1))
    assert measured.mutual_information == pytest.approx(2 * 0.5 * math.log(1 + 1 / variance), abs=0.12)


def test_the_information_of_groups_is_their_number() -> None:
    """Rows in k places far apart say which place, log k, and no more; rows that are all apart say which row."""
    places = torch.tensor([-100.0, 0.0, 100.0, 200.0])[torch.arange(400) % 4][:, None]
    noise = random(400, 1)
    assert usage(Posterior(places, torch.zeros(400, 1)), noise).mutual_information == pytest.approx(math.log(4))
    apart = Posterior(100 * torch.arange(400.0)[:, None], torch.zeros(400, 1))
    assert usage(apart, noise).mutual_information == pytest.approx(math.log(400))


def test_the_information_is_bounded_by_the_rows_it_is_estimated_on() -> None:
    """However many rows there are, the estimate looks at no more than INFORMATION_ROWS."""
    apart = Posterior(100 * torch.arange(3000.0)[:, None], torch.zeros(3000, 1))
    assert usage(apart, random(3000, 1)).mutual_information == pytest.approx(math.log(INFORMATION_ROWS))


def test_collapse_is_warned_of_with_what_to_change() -> None:
    """None used, and few, have a warning that names settings to change; enough have none."""
    (none,) = warnings_of(0, 8, ObjectiveConfig(beta=4.0))
    assert none == (
        "posterior collapse: none of the 8 latent dimensions says anything of the rows, so every row is explained "
        "alike; lower objective.beta from 4, raise objective.kl_warmup, or set objective.free_bits = 0.1"
    )
    (few,) = warnings_of(1, 8, ObjectiveConfig(beta=0.1))
    assert few == (
        "1 of the 8 latent dimensions are used; where that is too few, lower objective.beta from 0.1, raise "
        "objective.kl_warmup, or set objective.free_bits = 0.1; where it is enough, model.latent_dim = 1 does as well"
    )
    assert not list(warnings_of(2, 8, ObjectiveConfig()))
    assert "lower objective.beta" not in next(warnings_of(0, 8, ObjectiveConfig(beta=0.0)))
