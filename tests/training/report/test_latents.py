"""Where rows lie in the latent space, and planes to see it in."""

import numpy as np
import pytest
import torch

from vaeserve_training.collapse import usage
from vaeserve_training.report.latents import Latents, most_active, principal, prior_radius
from vaeserve_training.vae import Posterior


def of(mean: object, log_variance: object = 0.0) -> Latents:
    """Return latents with some means, [rows, latent]."""
    means = np.asarray(mean, np.float64)
    return Latents(means, np.broadcast_to(np.asarray(log_variance, np.float64), means.shape))


def test_they_agree_with_what_training_measures() -> None:
    """KL and active dimensions are those of `collapse.usage`."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 0.3, 0.05, 0.0])
    posterior = Posterior(
        torch.randn(500, 4, generator=generator) * spread, torch.randn(500, 4, generator=generator) * 0.1
    )
    expected = usage(posterior, torch.randn(500, 4, generator=generator))
    latents = of(posterior.mean.numpy(), posterior.log_variance.numpy())
    np.testing.assert_allclose(latents.kl, expected.latent_kl, rtol=1e-5)
    assert latents.active.sum() == expected.active_units == 2
    assert latents.by_activity.tolist() == [0, 1, 2, 3]


def test_the_plane_of_the_most_active_takes_the_two_whose_means_vary_most() -> None:
    """Dimensions are picked by the variance of their means, and keep their coordinates."""
    means = np.random.default_rng(0).normal(size=(50, 4)) * [0.1, 3.0, 0.0, 2.0]
    plane = most_active(of(means))
    assert plane.names == ("z1", "z3")
    np.testing.assert_array_equal(plane.points, means[:, [1, 3]])
    np.testing.assert_array_equal(plane.origin, [0, 0])


def test_principal_components_find_a_slanted_plane_and_keep_lengths() -> None:
    """Points of a slanted plane keep their distances to each other and to the prior's mean, whatever the signs."""
    generator = np.random.default_rng(1)
    axes, _ = np.linalg.qr(generator.normal(size=(5, 2)))
    means = generator.normal(size=(200, 2)) * [3, 1] @ axes.T
    plane = principal(of(means))
    np.testing.assert_allclose(
        np.linalg.norm(plane.points - plane.origin, axis=1), np.linalg.norm(means, axis=1), rtol=1e-9
    )
    assert plane.points[:, 0].var() > plane.points[:, 1].var()
    assert plane.names[0].startswith("component 1, 9") or plane.names[0].startswith("component 1, 8")
    np.testing.assert_allclose(principal(of(means)).points, plane.points)


def test_collapsed_rows_have_a_plane_all_the_same() -> None:
    """Where all rows lie on one point, both planes are that point."""
    latents = of(np.zeros((7, 3)))
    assert not latents.active.any()
    for plane in (most_active(latents), principal(latents)):
        assert np.isfinite(plane.points).all()
        np.testing.assert_array_equal(plane.points, np.zeros((7, 2)))


def test_one_dimension_has_no_plane() -> None:
    """One dimension makes no plane, and that is said."""
    for plane in (most_active, principal):
        with pytest.raises(ValueError, match="1 latent dimension; a plane takes 2"):
            plane(of(np.zeros((7, 1))))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_radius_holds_its_share_of_the_prior(share: float) -> None:
    """A circle of the radius holds that share of draws from a standard normal."""
    draws = np.random.default_rng(0).normal(size=(200_000, 2))
    assert (np.linalg.norm(draws, axis=1) <= prior_radius(share)).mean() == pytest.approx(share, abs=0.003)
