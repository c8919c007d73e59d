"""The novelty benchmark on images made here."""

import numpy as np

from benchmarks import novelty
from benchmarks.settings import settings
from benchmarks.trial import attempt
from vaeserve.signature import Signature
from vaeserve_training.data import Dataset, Split


def halves(count: int, *, seed: int) -> Dataset:
    """Return images of 6 x 6 whose upper half is brighter than the lower."""
    generator = np.random.default_rng(seed)
    levels = np.repeat([[180.0], [60.0]], 3, axis=0) + 20 * generator.normal(size=(count, 1, 1, 1))
    pixels = levels + 5 * generator.normal(size=(count, 1, 6, 6))
    return Dataset("halves", Signature.image((1, 6, 6)), {"image": pixels.clip(0, 255).astype(np.uint8)})


def test_upside_down_reverses_the_rows_of_pixels() -> None:
    """The first row of pixels becomes the last; columns stay."""
    dataset = halves(3, seed=0)
    image, turned = (some.inputs["image"] for some in (dataset, novelty.upside_down(dataset)))
    np.testing.assert_array_equal(turned[:, :, 0], image[:, :, -1])
    np.testing.assert_array_equal(turned[:, :, ::-1], image)


def test_tells_images_upside_down_from_the_usual() -> None:
    """A briefly trained model tells an obvious novelty, and not more of the usual."""
    images = halves(400, seed=0)
    usual = halves(200, seed=1)
    config = settings(novelty.MODEL, ["optimizer.max_steps=200"])
    split = Split(train=images[:300], validation=images[300:], calibration=images[:0], test=usual)
    ensemble = attempt(split, config, seed=0).trained.ensemble
    found = novelty.aurocs(ensemble, usual, {"other": novelty.upside_down(usual), "same": halves(200, seed=2)})
    assert found["other"] > 0.99
    assert 0.4 < found["same"] < 0.6
