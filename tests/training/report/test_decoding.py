"""What a report decodes: ways through the latent space, and the scale that rows are drawn in."""

import numpy as np
import pytest

from vaeserve.signature import Column, Signature
from vaeserve_training.data import Arrays
from vaeserve_training.report.decoding import SPAN, STEPS, Scale, along, between, far_apart, samples


class Doubled:
    """A model whose decoder doubles its latents."""

    latent_dim = 3

    def encode(self, inputs: Arrays) -> Arrays:
        """Return nothing that is asked for."""
        return inputs

    def decode(self, z: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Arrays:
        """Return the doubled latents as numbers."""
        return {"numeric": 2 * z}

    def score(self, inputs: Arrays) -> Arrays:
        """Return nothing that is asked for."""
        return inputs


def test_a_way_goes_from_each_end_to_the_next_in_even_steps() -> None:
    """Three ends make two ways, each straight, from one end's own output to the other's."""
    ends = np.array([[0, 0, 0], [4, 0, 8], [4, 1, 0]], np.float32)
    first, second = between(Doubled(), ends)
    assert (first.name, second.name) == ("A to B", "B to C")
    np.testing.assert_allclose(first.outputs["numeric"], np.linspace([0, 0, 0], [8, 0, 16], STEPS))
    np.testing.assert_array_equal(second.outputs["numeric"][[0, -1]], 2 * ends[1:])


def test_along_an_axis_only_that_axis_moves() -> None:
    """A way along a dimension leaves the others at 0, and spans the prior."""
    (way,) = along(Doubled(), [1])
    np.testing.assert_allclose(way.outputs["numeric"][:, 1], 2 * np.linspace(-SPAN, SPAN, STEPS))
    assert not way.outputs["numeric"][:, [0, 2]].any()


def test_samples_are_the_same_each_time_and_like_the_prior() -> None:
    """Draws are by a fixed seed, the first ones those of a larger draw, with the prior's deviation."""
    drawn = samples(Doubled(), 2000)["numeric"]
    np.testing.assert_array_equal(samples(Doubled(), 5)["numeric"], drawn[:5])
    assert drawn.std() == pytest.approx(2, abs=0.05)


def test_rows_far_apart_are_the_corners() -> None:
    """From one corner of a cloud the next is the opposite one, and no point comes twice."""
    points = np.array([[0, 0], [10, 10], [9, 9], [0, 10], [1, 0]], float)
    assert far_apart(points, 3, first=0) == [0, 1, 3]
    assert far_apart(np.zeros((4, 2)), 3, first=2) == [2]


def test_a_scale_undoes_units_and_bears_what_is_missing_constant_or_huge() -> None:
    """Medians go to 0 and usual values to about 1, whatever lies at the ends; a rare bit is at most 2 away."""
    generator = np.random.default_rng(0)
    normal = generator.normal(5, 3, size=1000)
    normal[:5] = 1e9
    gaps = np.where(generator.random(1000) < 0.5, np.nan, normal)
    columns = [np.full(1000, 7.0), normal, gaps, np.full(1000, np.nan), (generator.random(1000) < 0.01).astype(float)]
    rows = np.column_stack(columns).astype(np.float32)
    kinds = ["numeric"] * 4 + ["binary"]
    signature = Signature.table([Column(f"c{index}", kind) for index, kind in enumerate(kinds)])  # type: ignore[arg-type]
    scaled = Scale.of(signature, {"numeric": rows})({"numeric": rows})
    assert not scaled[:, 0].any()
    assert np.median(scaled[:, 1]) == pytest.approx(0, abs=1e-6)
    assert scaled[5:, 1].std() == pytest.approx(1, abs=0.1)
    assert np.isnan(scaled[:, 2]).mean() == pytest.approx(0.5, abs=0.1)
    assert np.isnan(scaled[:, 3]).all()
    assert scaled[:, 4].max() == 2
