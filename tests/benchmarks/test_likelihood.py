"""What the likelihood benchmark trains and tests on, and its estimates."""

import numpy as np
import pytest

from benchmarks import likelihood
from benchmarks.settings import settings
from benchmarks.trial import attempt
from vaeserve.signature import Signature
from vaeserve_training.data import Dataset


def greys(count: int) -> Dataset:
    """Return images of 4 x 4 random grey levels, each row of pixels of one level."""
    levels = np.random.default_rng(0).integers(0, 256, (count, 1, 4, 1), np.uint8)
    return Dataset("greys", Signature.image((1, 4, 4)), {"image": np.repeat(levels, 4, axis=3)})


def test_a_pixel_is_white_with_its_grey_level_as_the_probability() -> None:
    """Bits are black or white, of the grey levels' mean, and the same each time; black and white stay."""
    dataset = greys(5000)
    bits = likelihood.binarised(dataset, seed=1).inputs["image"]
    assert set(np.unique(bits)) == {0, 255}
    pixels = dataset.inputs["image"]
    assert bits.mean() == pytest.approx(pixels.mean(), rel=0.02)
    assert (bits[pixels == 0] == 0).all()
    assert (bits[pixels == 255] == 255).all()
    np.testing.assert_array_equal(bits, likelihood.binarised(dataset, seed=1).inputs["image"])
    assert (bits != likelihood.binarised(dataset, seed=2).inputs["image"]).any()


def test_trains_on_greys_and_holds_out_the_last_as_bits() -> None:
    """Training images keep their grey levels; validation and test images are bits."""
    images = greys(30)
    split = likelihood.split_of(images, greys(5), held_out=10)
    np.testing.assert_array_equal(split.train.inputs["image"], images.inputs["image"][:20])
    np.testing.assert_array_equal(
        split.validation.inputs["image"], likelihood.binarised(images[20:], seed=1).inputs["image"]
    )
    assert (len(split.validation), len(split.test)) == (10, 5)


def test_estimates_are_bounds_in_order() -> None:
    """The ELBO is below the IWAE bound of the same rows, and both below 0, the log-probability of certain bits."""
    split = likelihood.split_of(greys(600), greys(200), held_out=100)
    config = settings(likelihood.MODEL, ["optimizer.max_steps=200", "model.hidden=[32]", "model.latent_dim=4"])
    figures = likelihood.likelihoods(
        attempt(split, config, seed=0).trained.ensemble, split.test, iwae_rows=200, iwae_samples=100
    )
    elbo, iwae = figures["elbo"], figures["iwae"]
    assert -16 * np.log(2) - 1 < elbo["mean"] < iwae["mean"] < 0
    assert 0 < elbo["standard_error"] < 1
    assert 0 < iwae["standard_error"] < 1
