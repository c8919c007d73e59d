"""Raw inputs to scaled features and back."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaeserve.scores import RowStatus
from vaeserve_training.features import LARGEST, ImageFeatures, TableFeatures

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def fitted(rows: torch.Tensor) -> TableFeatures:
    """Return a table's features, fitted to `rows`."""
    features = TableFeatures(rows.shape[1])
    features.fit(rows)
    return features


def test_a_table_is_standardized_and_comes_back() -> None:
    """The fitted rows have mean 0 and scale 1, and the inverse gives them back in raw units."""
    rows = torch.randn(1000, 3) * torch.tensor([1e-2, 1.0, 1e6]) + torch.tensor([5.0, 0.0, -1e6])
    features = fitted(rows)
    x = features({"numeric": rows})
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(features.inverse(x)["numeric"], rows, rtol=1e-5, atol=1e-5)


def test_a_constant_column_survives() -> None:
    """A column that doesn't vary, or only by rounding, keeps scale 1, so that it doesn't explode."""
    rows = torch.tensor([[7.0, 1e6], [7.0, 1e6 + 0.0625]])
    assert fitted(rows).scale.tolist() == [1, 1]


@given(st.lists(FINITE, min_size=4, max_size=4), st.lists(FINITE, min_size=2, max_size=2))
def test_finite_input_stays_finite(train: list[float], row: list[float]) -> None:
    """Whatever the columns hold, a finite row scales to finite numbers within the range of the likelihood."""
    features = fitted(torch.tensor(train).reshape(2, 2))
    x = features({"numeric": torch.tensor([row])})
    assert torch.isfinite(x).all()
    assert x.abs().max() <= LARGEST


def test_the_status_says_what_is_wrong_with_a_row() -> None:
    """Missing and infinite values have a status each; the infinite weighs more; scaled, they count as the mean."""
    nan, inf = np.nan, np.inf
    rows = torch.tensor([[1.0, 2.0], [nan, 2.0], [1.0, -inf], [nan, inf]])
    features = TableFeatures(2)
    assert features.status({"numeric": rows}).tolist() == [
        RowStatus.OK,
        RowStatus.UNSCORABLE_MISSING,
        RowStatus.UNSCORABLE_NOT_FINITE,
        RowStatus.UNSCORABLE_NOT_FINITE,
    ]
    assert features({"numeric": rows}).tolist() == [[1, 2], [0, 2], [1, 0], [0, 0]]


def test_images_are_intensities_and_come_back() -> None:
    """Every grey level maps into [0, 1] and back to itself."""
    images = torch.arange(256, dtype=torch.uint8).reshape(8, 2, 4, 4)
    features = ImageFeatures((2, 4, 4))
    x = features({"image": images})
    assert (x.shape, x.min().item(), x.max().item()) == ((8, 32), 0.0, 1.0)
    assert torch.equal(features.inverse(x)["image"], images)
    assert features.inverse(2 * x + 1)["image"].max() == 255
