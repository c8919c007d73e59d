"""The protocol on synthetic labels: who trains, who tests."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import adbench
from vaeserve.errors import DataError
from vaeserve.signature import Signature
from vaeserve_training.data import Dataset


def labels(normal: int, anomalous: int) -> NDArray[np.bool_]:
    """Return labels, in order as some sets have them."""
    return np.repeat([True, False], [anomalous, normal])


@pytest.mark.parametrize("contamination", [0.0, 0.05])
def test_no_row_is_trained_on_and_tested(contamination: float) -> None:
    """Training rows, intruders and test rows are apart, and none comes twice."""
    division = adbench.divide(labels(1000, 200), seed=0, contamination=contamination)
    rows = np.concatenate([division.train, division.intruders, division.test])
    assert len(np.unique(rows)) == len(rows)


def test_trains_on_half_of_the_normal_rows_and_tests_on_the_rest() -> None:
    """Half of the normal rows train; the other half and every anomaly test."""
    anomalous = labels(1000, 200)
    division = adbench.divide(anomalous, seed=0)
    assert len(division.train) == 500
    assert not anomalous[division.train].any()
    assert len(division.intruders) == 0
    assert len(division.test) == 700
    assert anomalous[division.test].sum() == 200


def test_trains_on_10000_rows_and_tests_on_20000_at_most() -> None:
    """Large sets are cut at random: the test keeps about as many anomalies a row as there were."""
    anomalous = labels(90_000, 5000)
    division = adbench.divide(anomalous, seed=0)
    assert len(division.train) == 10_000
    assert len(division.test) == 20_000
    assert anomalous[division.test].mean() == pytest.approx(5000 / 50_000, rel=0.05)


def test_the_seed_decides() -> None:
    """One seed gives one division, another gives another."""
    first, again, other = (adbench.divide(labels(1000, 200), seed=seed).train for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


@pytest.mark.parametrize(("anomalies", "rows"), [(200, 500), (20, 200)])
def test_the_share_of_intruders_is_exact(anomalies: int, rows: int) -> None:
    """5 % of the training rows are anomalies that the test lacks, also where that takes fewer rows."""
    anomalous = labels(1000, anomalies)
    division = adbench.divide(anomalous, seed=0, contamination=0.05)
    contaminated = division.contaminated()
    assert len(contaminated) == len(division.train) == rows
    assert anomalous[contaminated].sum() == len(division.intruders) == rows // 20
    assert anomalous[division.test].sum() == anomalies - rows // 20
    assert set(contaminated) - set(division.train) == set(division.intruders)


def test_contamination_changes_neither_the_normal_rows_nor_their_test() -> None:
    """The clean rows to compare with are those of the plain protocol."""
    anomalous = labels(1000, 200)
    plain, compared = (adbench.divide(anomalous, seed=0, contamination=share) for share in (0.0, 0.05))
    np.testing.assert_array_equal(plain.train, compared.train)
    np.testing.assert_array_equal(
        np.sort(plain.test[~anomalous[plain.test]]), np.sort(compared.test[~anomalous[compared.test]])
    )


@pytest.mark.parametrize("contaminated", [False, True])
def test_parts_hold_the_divisions_rows(contaminated: bool) -> None:
    """Validation rows come out of the training rows; labels go with the test alone."""
    anomalous = labels(1000, 200)
    arrays = {"numeric": np.arange(1200, dtype=np.float32)[:, None]}
    dataset = Dataset("rows", Signature.numbers(["row"]), arrays, anomalous)
    division = adbench.divide(anomalous, seed=0, contamination=0.05)
    split = adbench.split_of(dataset, division, contaminated=contaminated, validation=0.1, seed=0)
    train, held_out, test = (part.inputs["numeric"][:, 0] for part in (split.train, split.validation, split.test))
    assert len(held_out) == 50
    expected = division.contaminated() if contaminated else division.train
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held_out])), np.sort(expected))
    np.testing.assert_array_equal(test, division.test)
    assert split.train.anomalous is None
    assert split.validation.anomalous is None
    assert split.test.anomalous is not None
    np.testing.assert_array_equal(split.test.anomalous, anomalous[division.test])
    assert anomalous[held_out.astype(int)].any() == contaminated  # they are spread over both parts


def test_nothing_is_held_out_of_no_validation() -> None:
    """A validation share of 0 leaves all rows to train on."""
    anomalous = labels(40, 4)
    dataset = Dataset("rows", Signature.numbers(["x"]), {"numeric": np.zeros((44, 1), np.float32)}, anomalous)
    split = adbench.split_of(dataset, adbench.divide(anomalous, seed=0), contaminated=False, validation=0.0, seed=0)
    assert (len(split.train), len(split.validation)) == (20, 0)


def test_sets_come_by_number_and_by_name(tmp_path: Path) -> None:
    """Files are in the order of their numbers; a name that no file has is refused with those that are there."""
    for name in ("10_cover", "2_annthyroid", "4_breastw"):
        np.savez(tmp_path / f"{name}.npz", X=np.eye(3), y=np.array([0, 0, 1]))
    assert [path.stem for path in adbench.paths(tmp_path)] == ["2_annthyroid", "4_breastw", "10_cover"]
    assert [path.stem for path in adbench.paths(tmp_path, ["cover"])] == ["10_cover"]
    with pytest.raises(DataError, match="no set 'cove'; expected one of annthyroid, breastw, cover"):
        adbench.paths(tmp_path, ["cove"])
    dataset = adbench.read(tmp_path / "10_cover.npz")
    assert dataset.name == "cover"
    assert dataset.anomalous is not None
    assert dataset.anomalous.tolist() == [False, False, True]
    assert dataset.arrays["numeric"].dtype == np.float32


def test_refuses_a_folder_without_sets(tmp_path: Path) -> None:
    """An empty folder is refused by name."""
    with pytest.raises(DataError, match="no sets"):
        adbench.paths(tmp_path)
