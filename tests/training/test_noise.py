"""The points at which a model scores."""

import numpy as np
import pytest

from vaeserve_training.noise import sobol_normal


def test_noise_is_standard_normal_and_evenly_spread() -> None:
    """The points are finite, differ by seed, have mean 0 and variance 1, and their mean errs less than random ones'."""
    noise = sobol_normal(16, seed=0, num_samples=8)
    assert noise.shape == (256, 16)
    assert noise.dtype == np.float32
    assert np.isfinite(noise).all()
    assert np.abs(noise).max() < 5.3
    assert np.abs(noise.mean(0)).max() < 0.02  # random points: 1 / sqrt(256) = 0.06
    assert np.abs(noise.var(0) - 1).max() < 0.1  # random points: 0.09 one standard deviation
    assert not np.array_equal(noise, sobol_normal(16, seed=1, num_samples=8))
    assert np.array_equal(noise, sobol_normal(16, seed=0, num_samples=8))


@pytest.mark.parametrize("latent_dim", [1, 2, 4, 16, 32])
@pytest.mark.parametrize("num_samples", [1, 2, 8])
def test_the_points_of_a_score_have_the_length_that_is_expected(latent_dim: int, num_samples: int) -> None:
    """Half their squared length shifts every bound: by chance nats, and here hundredths of one."""
    for seed in range(2):
        points = sobol_normal(latent_dim, seed=seed, num_samples=num_samples)[:num_samples]
        assert abs(0.5 * np.square(points).sum(1).mean() - 0.5 * latent_dim) < 0.2, seed
