"""Distances between rows, against scikit-learn's."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from vaeserve.signature import Column, Signature
from vaeserve_training.features import tensors_of
from vaeserve_training.sweep import neighbours
from vaeserve_training.sweep.neighbours import Space, nearest, nearest_others, within


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return standard-normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 5), st.integers(2, 40), st.integers(0, 1000), st.integers(1, 3), st.sampled_from([1, 7, 2**24]))
def test_neighbours_are_scikit_learns(width: int, count: int, seed: int, k: int, at_once: int) -> None:
    """Distances to the nearest and to the k-th nearest other are scikit-learn's, however many are held at once."""
    points, others = random(9, width, seed=seed), random(count, width, seed=seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "DISTANCES_AT_ONCE", at_once)
        found, radii = nearest(points, others), nearest_others(others, k=k)
        inside = within(points, others, radii)
    known = NearestNeighbors().fit(others.numpy())
    distances, indices = known.kneighbors(points.numpy(), n_neighbors=count)
    assert found.numpy() == pytest.approx(distances[:, 0], rel=1e-5)
    k = min(k, count - 1)  # there are no more
    assert radii.numpy() == pytest.approx(known.kneighbors(others.numpy(), n_neighbors=k + 1)[0][:, -1], rel=1e-5)
    assert inside.tolist() == (distances <= radii.numpy()[indices]).any(1).tolist()


def test_equal_rows_are_0_apart() -> None:
    """A row that is there twice has its like at distance 0, exactly, and lies in a ball of radius 0."""
    rows = random(5, 64).repeat(2, 1) + 100
    assert nearest(rows, rows).tolist() == [0] * 10
    assert nearest_others(rows, k=1).tolist() == [0] * 10
    assert within(rows, rows, torch.zeros(10)).all()


TABLE = Signature.table([
    Column("colour", "categorical", ("blue", "red"), nullable=True), Column("size", "numeric", nullable=True),
    Column("weight", "numeric"),
])  # fmt: skip


def table(colours: list[str], sizes: list[float], weights: list[float]) -> dict[str, Tensor]:
    """Return rows of a table as tensors."""
    numeric = np.array([sizes, weights], np.float32).T
    return tensors_of(TABLE, {"categorical": np.array(colours)[:, None], "numeric": numeric})


def test_a_tables_points_are_scaled_and_a_missing_value_lies_at_the_centre() -> None:
    """Numbers count in standard deviations and categories one-hot; a missing value isn't seen, nor that it is."""
    rows = table(["blue", "red", ""], [10.0, 30.0, np.nan], [1.0, 1.0, 4.0])
    space = Space(TABLE, rows)
    points = space.points(rows)
    assert points.shape == (3, space.width) == (3, 4)
    assert sorted(points[0].tolist()) == pytest.approx([-1, -0.70711, 0, 1], abs=1e-4)
    assert sorted(points[2].tolist()) == pytest.approx([0, 0, 0, 1.41421], abs=1e-4)
    assert float((points[0] - points[1]).norm()) == pytest.approx(6**0.5, rel=1e-5)


def test_rows_can_lack_what_others_lack() -> None:
    """Rows with no value missing are taken as though those were that are in other rows."""
    rows = table(["blue", "red", ""], [10.0, 30.0, np.nan], [1.0, 1.0, 4.0])
    whole = table(["blue"] * 3, [30.0] * 3, [4.0] * 3)
    space = Space(TABLE, rows)
    points = space.points(whole, like=rows)
    assert torch.equal(points[:2], space.points(whole)[:2])
    assert torch.equal(points[2], space.points(rows)[2])


def test_an_images_points_are_intensities() -> None:
    """Pixels are intensities from 0 to 1, in order."""
    images = torch.arange(12, dtype=torch.uint8).reshape(2, 1, 2, 3) * 20
    space = Space(Signature.image((1, 2, 3)), {"image": images})
    assert space.points({"image": images}).flatten().tolist() == pytest.approx([20 * i / 255 for i in range(12)])
