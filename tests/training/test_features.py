"""Raw inputs to what the networks and the likelihood see, and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vaeserve.scores import RowStatus
from vaeserve.signature import Column, Signature
from vaeserve_training.features import (
    INPUT_RANGE,
    ImageFeatures,
    Inputs,
    Rows,
    TableFeatures,
    features_of,
    tensors_of,
)
from vaeserve_training.scaling import LARGEST

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
# Numbers and categories in turn, so that the order of the features isn't that of the tensors.
COLUMNS = [
    Column("colour", "categorical", ("blue", "red", "green"), nullable=True),
    Column("size", "numeric"),
    Column("flag", "binary"),
    Column("shape", "categorical", ("round", "square")),
    Column("weight", "numeric", nullable=True),
]
MIXED = Signature.table(COLUMNS)
NAN, INF = np.nan, np.inf


def fitted(rows: Tensor) -> TableFeatures:
    """Return the features of a table of numbers, fitted to `rows`."""
    features = TableFeatures(Signature.numbers([f"c{index}" for index in range(rows.shape[1])]), "standard")
    features.fit({"numeric": rows})
    return features


def mixed(count: int = 200) -> Inputs:
    """Return rows of the mixed table, some values missing where they may."""
    generator = np.random.default_rng(0)
    numeric = np.stack(
        [generator.normal(5, 2, count), generator.integers(0, 2, count), generator.normal(-1, 3, count)], 1
    ).astype(np.float32)
    numeric[::7, 2] = np.nan
    colour = np.where(np.arange(count) % 9 == 0, "", generator.choice(["blue", "red", "green"], count))
    shape = generator.choice(["round", "square"], count)
    return tensors_of(MIXED, {"numeric": numeric, "categorical": np.stack([colour, shape], 1)})


@pytest.fixture
def table() -> TableFeatures:
    """The features of the mixed table, fitted."""
    features = TableFeatures(MIXED, "standard")
    features.fit(mixed())
    return features


def one(numeric: list[float], categorical: list[str]) -> Inputs:
    """Return one row of the mixed table."""
    return tensors_of(MIXED, {"numeric": np.array([numeric], np.float32), "categorical": np.array([categorical])})


def test_a_table_is_standardized_and_comes_back() -> None:
    """The fitted rows have mean 0 and scale 1, and the inverse gives them back in raw units."""
    rows = torch.randn(1000, 3) * torch.tensor([1e-2, 1.0, 1e6]) + torch.tensor([5.0, 0.0, -1e6])
    features = fitted(rows)
    x, observed, log_jacobian = features({"numeric": rows})
    torch.testing.assert_close(x.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(features.inverse(x)["numeric"], rows, rtol=1e-5, atol=1e-5)
    assert (observed == 1).all()
    assert log_jacobian is None


def test_a_mixed_table_keeps_the_columns_order(table: TableFeatures) -> None:
    """Features lie in the columns' order: codes as they are, bits as they are, numbers scaled."""
    rows = table(one([7.0, 1.0, -4.0], ["green", "round"]))
    size, weight = table.scaling.center[0], table.scaling.center[2]
    expected = [2, (7 - size) / table.scaling.scale[0], 1, 0, (-4 - weight) / table.scaling.scale[2]]
    torch.testing.assert_close(rows.x[0], torch.tensor(expected))
    assert table.takes_noise.tolist() == [0, 1, 0, 0, 1]


def test_the_encoder_sees_numbers_one_hot_codes_and_what_is_missing(table: TableFeatures) -> None:
    """Its input is the numbers, a bit for each known category, and a bit for each column that may miss values."""
    rows = table(one([7.0, 1.0, -4.0], ["green", "round"]))
    seen = table.network_input(rows)[0].tolist()
    assert table.width == len(seen) == 3 + 3 + 2 + 2
    assert seen[:3] == rows.x[0, [1, 2, 4]].tolist()
    assert seen[3:] == [0, 0, 1, 1, 0, 1, 1]


def test_missing_and_unseen_values_differ_for_the_encoder(table: TableFeatures) -> None:
    """A missing value is 0 and has its bit down; an unseen category is none of the known ones and has it up."""
    missing = table.network_input(table(one([7.0, 1.0, NAN], ["", "round"])))[0].tolist()
    assert (missing[2], missing[3:6], missing[8:]) == (0, [0, 0, 0], [0, 0])
    unseen = table.network_input(table(one([7.0, 1.0, -4.0], ["violet", "round"])))[0].tolist()
    assert (unseen[3:6], unseen[8:]) == ([0, 0, 0], [1, 1])


def test_what_is_missing_is_not_observed(table: TableFeatures) -> None:
    """Observed is 1 where there is a value; an unseen category is one, as many as the known ones."""
    rows = table(one([7.0, 1.0, NAN], ["", "triangle"]))
    assert rows.observed is not None
    assert rows.observed.tolist() == [[0, 1, 1, 1, 0]]
    assert rows.x[0, 3] == 2
    assert torch.isfinite(rows.x).all()


def test_the_encoder_sees_no_more_of_an_outlier_than_its_range(table: TableFeatures) -> None:
    """Numbers far out are cut for the encoder, and whole for the likelihood."""
    rows = table(one([1e9, 1.0, -1e9], ["red", "round"]))
    assert table.network_input(rows)[0, [0, 2]].tolist() == [INPUT_RANGE, -INPUT_RANGE]
    assert rows.x[0, 1] > 1e6


def test_a_mixed_table_comes_back(table: TableFeatures) -> None:
    """The inverse gives numbers in raw units and categories as codes, in the tensors' order."""
    raw = one([7.0, 1.0, -4.0], ["green", "square"])
    back = table.inverse(table(raw).x)
    torch.testing.assert_close(back["numeric"], raw["numeric"])
    assert torch.equal(back["categorical"], raw["categorical"])


@given(st.lists(st.tuples(st.floats(-1e4, 1e4, width=32), st.integers(0, 2)), min_size=3, max_size=20))
def test_any_mixed_rows_come_back(values: list[tuple[float, int]]) -> None:
    """Numbers and codes of any rows survive the round trip."""
    signature = Signature.table([COLUMNS[0], Column("n", "numeric")])
    features = TableFeatures(signature, "robust")
    numbers, codes = (torch.tensor(part)[:, None] for part in zip(*values, strict=True))
    inputs = {"numeric": numbers.float(), "categorical": codes}
    features.fit(inputs)
    back = features.inverse(features(inputs).x)
    assert torch.equal(back["categorical"], codes)
    torch.testing.assert_close(back["numeric"], numbers.float(), rtol=1e-4, atol=0.02)


def test_a_constant_column_is_masked() -> None:
    """A column of one value, of numbers or categories, is neither seen nor scored, and its absence is no matter."""
    signature = Signature.table([
        Column("same", "numeric"), Column("n", "numeric"), Column("c", "categorical", ("x", "y")),
        Column("alike", "categorical", ("x",)),
    ])  # fmt: skip
    features = TableFeatures(signature, "standard")
    inputs = tensors_of(signature, {
        "numeric": np.array([[7, 1], [7, 2], [7, 3]], np.float32),
        "categorical": np.array([["x", "x"], ["y", "x"], ["x", "x"]]),
    })  # fmt: skip
    features.fit(inputs)
    assert features.constant == [0, 3]
    assert features(inputs).observed[:, [0, 3]].sum() == 0
    assert features.network_input(features(inputs))[:, [0, 4]].abs().sum() == 0
    gone = {"numeric": torch.tensor([[NAN, 1.0]]), "categorical": torch.tensor([[0, -1]])}
    assert features.status(gone).tolist() == [RowStatus.OK]


def test_a_column_that_hardly_varies_survives() -> None:
    """A column that doesn't vary, or only by rounding, keeps scale 1, so that it doesn't explode."""
    rows = torch.tensor([[7.0, 1e6], [7.0, 1e6 + 0.0625]])
    assert fitted(rows).scaling.scale.tolist() == [1, 1]


@given(st.lists(FINITE, min_size=4, max_size=4), st.lists(FINITE, min_size=2, max_size=2))
def test_finite_input_stays_finite(train: list[float], row: list[float]) -> None:
    """Whatever the columns hold, a finite row scales to finite numbers within the range of the likelihood."""
    features = fitted(torch.tensor(train).reshape(2, 2))
    x = features({"numeric": torch.tensor([row])}).x
    assert torch.isfinite(x).all()
    assert x.abs().max() <= LARGEST


def test_the_status_says_what_is_wrong_with_a_row() -> None:
    """Missing and infinite values have a status each; the infinite weighs more; scaled, they count as the center."""
    rows = torch.tensor([[1.0, 2.0], [NAN, 2.0], [1.0, -INF], [NAN, INF]])
    features = TableFeatures(Signature.numbers(["a", "b"]), "standard")
    assert features.status({"numeric": rows}).tolist() == [
        RowStatus.OK,
        RowStatus.UNSCORABLE_MISSING,
        RowStatus.UNSCORABLE_NOT_FINITE,
        RowStatus.UNSCORABLE_NOT_FINITE,
    ]
    assert features.status({"numeric": rows}).dtype == torch.int32
    assert features({"numeric": rows}).x.tolist() == [[1, 2], [0, 2], [1, 0], [0, 0]]
    assert features({"numeric": rows}).observed.tolist() == [[1, 1], [0, 1], [1, 0], [0, 0]]


def test_a_value_may_be_missing_where_that_was_learned(table: TableFeatures) -> None:
    """Only columns that are nullable may miss a value; an unseen category is none that is missing."""
    rows = {
        RowStatus.OK: [one([1, 0, NAN], ["", "round"]), one([1, 0, 1], ["violet", "oval"])],
        RowStatus.UNSCORABLE_MISSING: [one([NAN, 0, 1], ["red", "round"]), one([1, 0, 1], ["red", ""])],
        RowStatus.UNSCORABLE_NOT_FINITE: [one([1, 0, INF], ["red", "round"]), one([NAN, 0, -INF], ["red", ""])],
    }
    for status, inputs in rows.items():
        assert [table.status(row).item() for row in inputs] == [status, status]


def test_a_row_without_any_value_cannot_be_scored() -> None:
    """Even where each value may be missing, not all of them may."""
    features = TableFeatures(Signature.table([Column("a", "numeric", nullable=True)] * 1), "standard")
    assert features.status({"numeric": torch.tensor([[NAN], [1.0]])}).tolist() == [RowStatus.UNSCORABLE_MISSING, 0]


def test_values_can_be_taken_as_they_are() -> None:
    """As is, numbers aren't scaled; what is constant is masked all the same."""
    features = features_of(Signature.numbers(["a", "b"]), "standard", as_is=True)
    rows = torch.tensor([[0.25, 1.0], [0.75, 1.0]])
    features.fit({"numeric": rows})
    assert torch.equal(features({"numeric": rows}).x, rows)
    assert features({"numeric": rows}).observed.tolist() == [[1, 0], [1, 0]]


def test_the_features_are_a_part_of_the_models_state(table: TableFeatures) -> None:
    """What was learned of the columns travels with the weights."""
    again = TableFeatures(MIXED, "standard")
    again.load_state_dict(table.state_dict())
    for one_part, other in zip(table(mixed()), again(mixed()), strict=True):
        assert one_part is other is None or torch.equal(one_part, other)


def test_rows_are_picked_and_joined_part_by_part() -> None:
    """Picking and joining keep what there is of x, observed and log-Jacobian together."""
    rows = Rows(torch.arange(6.0).reshape(3, 2), torch.ones(3, 2))
    assert rows.pick(slice(1, 3)).x.tolist() == [[2, 3], [4, 5]]
    assert rows.pick(torch.tensor([2, 0])).x.tolist() == [[4, 5], [0, 1]]
    both = Rows.joined([rows.pick(slice(1)), rows.pick(slice(1, 3))], torch.cat)
    assert torch.equal(both.x, rows.x)
    assert both.observed is not None
    assert both.log_jacobian is None


def test_images_are_intensities_and_come_back() -> None:
    """Every grey level maps into [0, 1] and back to itself."""
    images = torch.arange(256, dtype=torch.uint8).reshape(8, 2, 4, 4)
    features = features_of(Signature.image((2, 4, 4)), "standard")
    assert isinstance(features, ImageFeatures)
    x, observed, log_jacobian = features({"image": images})
    assert (x.shape, x.min().item(), x.max().item()) == ((8, 32), 0.0, 1.0)
    assert (observed, log_jacobian) == (None, None)
    assert torch.equal(features.inverse(x)["image"], images)
    assert features.inverse(2 * x + 1)["image"].max() == 255
    assert features.status({"image": images}).tolist() == [RowStatus.OK] * 8
