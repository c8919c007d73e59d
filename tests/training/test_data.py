"""Datasets, their labels and their parts."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeserve.errors import ConfigError, DataError, VaeserveError
from vaeserve.signature import Column, Signature
from vaeserve.source import Source, open_source
from vaeserve_training.config import DataConfig
from vaeserve_training.data import Dataset, load_dataset, split


def source(path: Path, **columns: Any) -> Source:
    """Return a source with these columns."""
    pq.write_table(pa.table(columns), path / "data.parquet")
    return open_source(str(path / "data.parquet"))


def test_labels_are_no_feature(tmp_path: Path) -> None:
    """The label column sets the anomalies and isn't learned from; neither are dropped columns."""
    data = source(tmp_path, a=[1, 2, 3], b=[4, 5, 6], city=["x", "y", "z"], fraud=[0, 1, 0])
    dataset = load_dataset(data, label="fraud", drop=["city"])
    assert dataset.signature.features == ("a", "b")
    assert dataset.anomalous is not None
    assert dataset.anomalous.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("values", "normal"),
    [
        (["ok", "bad", "ok"], "ok"),
        (["01", "1", "01"], "01"),
        ([7, 8, 7], "7"),
        ([1000001, 1000002, 1000001], "1000001"),
        ([0.1, 0.2, 0.1], "0.1"),
        ([7.0, 8.0, 7.0], "7"),
        ([True, False, True], "true"),
    ],
)
def test_the_normal_value_can_be_named(tmp_path: Path, values: list[object], normal: str) -> None:
    """--normal names the normal value of any type; all others are anomalies."""
    dataset = load_dataset(source(tmp_path, a=[1, 2, 3], y=values), label="y", normal=normal)
    assert dataset.anomalous is not None
    assert dataset.anomalous.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [1], "y": [2]}, {"label": "y"}, "column 'y' holds 2 in row 0; expected 0 .* or 1 .*, or --normal"),
        ({"a": [1], "y": [None]}, {"label": "y"}, "column 'y' holds None in row 0"),
        ({"a": [1, 2], "y": ["ok", None]}, {"label": "y", "normal": "ok"}, "'y' holds None in row 1; expected a label"),
        ({"a": [1], "y": [float("nan")]}, {"label": "y", "normal": "1"}, "'y' holds nan in row 0; expected a label"),
        ({"a": [1], "y": [0]}, {"label": "z"}, "no column 'z'; expected one of a, y"),
        ({"a": [1], "y": ["ok"]}, {"label": "y", "normal": "fine"}, "never holds 'fine'; expected one of ok"),
        ({"a": [1]}, {"drop": ["b"]}, "no column 'b'; expected one of a"),
        ({"a": [1]}, {"drop": ["a"]}, "no columns to learn from"),
        ({"rate": [1]}, {"drop": ["rat"]}, "no column 'rat'; expected one of rate; did you mean 'rate'"),
        ({"a": [1], "y": [1]}, {"label": "y"}, "column 'y' calls all 1 rows anomalous; expected some that are normal"),
        ({"a": [1]}, {"normal": "1"}, "--normal '1' without labels; expected --label COLUMN too"),
        ({"a": [1]}, {"kinds": {"b": "binary"}}, "no column 'b'; expected one of a"),
        ({"a": [1]}, {"kinds": {"a": "class"}}, "--kind 'a'=class: expected one of numeric, binary, categorical"),
        ({"a": [1], "b": [2]}, {"drop": ["a"], "kinds": {"a": "binary"}}, "column 'a': dropped and given a kind"),
        ({"a": [1], "y": [0]}, {"label": "y", "kinds": {"y": "binary"}}, "'y': labels given as a feature"),
        ({"a": [1, 2], "c": ["x", "y"], "d": ["v", "w"]}, {}, "'c' .and 1 more.: free text.* --drop 'c' --drop 'd'"),
        ({"a": [None, None]}, {}, "column 'a': missing in all 2 rows"),
        ({"a": [1.0, float("inf")]}, {}, "column 'a' holds inf in row 1; expected numbers within .* --drop 'a'"),
        ({"a": [1.0, -1e300]}, {}, "column 'a' holds -1e.300 in row 1"),
        ({"a": [1.0, float("inf")], "y": [0, 1]}, {"label": "y"}, "column 'a' holds inf in row 1"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    """A wrong label, kind or name, and values past single precision are refused with the column and what to do."""
    with pytest.raises(VaeserveError, match=message) as refusal:
        load_dataset(source(tmp_path, **columns), **options)
    assert isinstance(refusal.value, DataError | ConfigError)


@given(st.integers(10, 300), st.integers(0, 20), st.integers(0, 5))
def test_parts_share_no_row_and_keep_anomalies_out(normal: int, anomalous: int, seed: int) -> None:
    """Every row is in one part; anomalous rows are in the test alone."""
    count = normal + anomalous
    rows = np.arange(count, dtype=np.float32)[:, None]
    labels = np.random.default_rng(seed).permutation(count) < anomalous
    dataset = Dataset("d", Signature.numbers(["a"]), {"numeric": rows}, labels)
    parts = split(dataset, DataConfig(), seed=seed)
    everything = [parts.train, parts.validation, parts.calibration, parts.test]
    assert sorted(np.concatenate([part.inputs["numeric"][:, 0] for part in everything])) == list(range(count))
    assert not any(part.anomalous.any() for part in everything[:3])  # type: ignore[union-attr]
    assert parts.test.anomalous.sum() == anomalous  # type: ignore[union-attr]


def test_the_split_is_the_seeds() -> None:
    """The same seed splits alike, another differently."""
    dataset = Dataset("d", Signature.numbers(["a"]), {"numeric": np.arange(100, dtype=np.float32)[:, None]})
    first, again, other = (split(dataset, DataConfig(), seed=seed) for seed in (1, 1, 2))
    assert first.train.sha256() == again.train.sha256() != other.train.sha256()


def test_too_few_rows_are_refused() -> None:
    """Fewer normal rows than make four parts are refused with the number needed."""
    dataset = Dataset("d", Signature.numbers(["a"]), {"numeric": np.zeros((9, 1), np.float32)})
    with pytest.raises(DataError, match="d: 9 normal rows; expected 10 or more"):
        split(dataset, DataConfig(), seed=0)


MIXED = {
    "n": [1.5, None, 2.5, -1.0] * 10,
    "c": ["x", "long", None, ""] * 10,
    "b": [True, False, None, True] * 10,
    "y": [0, 0, 0, 1] * 10,
}


def test_a_table_of_all_kinds_becomes_two_inputs(tmp_path: Path) -> None:
    """Numbers and truths go to one input, NaN for missing; categories to the other, empty for missing."""
    dataset = load_dataset(source(tmp_path, **MIXED), label="y")
    assert dataset.signature.columns == (
        Column("n", "numeric", nullable=True),
        Column("c", "categorical", ("long", "x"), nullable=True),
        Column("b", "binary", nullable=True),
    )
    np.testing.assert_array_equal(
        dataset.inputs["numeric"][:4], np.array([[1.5, 1], [np.nan, 0], [2.5, np.nan], [-1, 1]], np.float32)
    )
    assert dataset.inputs["categorical"][:4].tolist() == [["x"], ["long"], [""], [""]]
    assert [report.what for report in dataset.reports] == ["numeric", "categorical", "binary"]


def test_what_only_anomalous_rows_hold_is_unseen(tmp_path: Path) -> None:
    """A category of anomalous rows alone has the code of no category, however long or alike its text is."""
    data = source(tmp_path, c=["ab", "cd"] * 10 + ["abc", "abcdef", "", "ab"], y=[0] * 20 + [1] * 4)
    dataset = load_dataset(data, label="y")
    assert dataset.signature.columns[0].categories == ("ab", "cd")
    assert dataset.signature.codes(dataset.inputs["categorical"])[-4:].tolist() == [[2], [2], [-1], [0]]


@pytest.mark.parametrize("twin", [[0, 0, 1, 0], [0.0, 0.0, 1.0, 0.0], [False, False, True, False]])
@pytest.mark.parametrize("words", [True, False])
def test_a_feature_that_is_the_label_is_refused(tmp_path: Path, twin: list[Any], words: bool) -> None:
    """A column that equals the labels in every row, as they are or as 0 and 1, is refused by name."""
    labels = ["ok", "ok", "bad", "ok"] if words else [0, 0, 1, 0]
    data = source(tmp_path, a=[1.5, 2.5, 1.5, 3.5], twin=twin, y=labels)
    with pytest.raises(DataError, match="column 'twin' equals the label 'y' in every row: .* --drop 'twin'"):
        load_dataset(data, label="y", normal="ok" if words else None)
    assert load_dataset(data, label="y", normal="ok" if words else None, drop=["twin"]).signature.features == ("a",)


def test_a_feature_unlike_the_label_in_one_row_is_none(tmp_path: Path) -> None:
    """One row that differs, however far down, or labels that are all normal, tell that it's no copy of them."""
    labels = [0, 1] * 1000
    dataset = load_dataset(source(tmp_path, a=[*labels[:-1], 0], y=labels), label="y")
    assert dataset.signature.features == ("a",)
    assert load_dataset(source(tmp_path, a=[0, 0], y=[0, 0]), label="y").signature.features == ("a",)


def test_categories_in_a_csv_file_are_the_text_that_they_are(tmp_path: Path) -> None:
    """Codes that look like numbers keep their zeros where they are stated to be categories, whatever comes later."""
    lines = ["code,n", *["01,1", "02,2"] * 200_000, "A1,2.5", "A1,"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="t.csv: column 'code': .* value 'A1'; .* stated to be cat"):
        load_dataset(open_source(str(tmp_path / "t.csv")))
    dataset = load_dataset(open_source(str(tmp_path / "t.csv")), kinds={"code": "categorical"})
    assert dataset.signature.columns[0].categories == ("01", "02", "A1")
    assert dataset.signature.columns[1] == Column("n", "numeric", nullable=True)


@pytest.mark.parametrize("columns", [MIXED, {"n": [1.5, 2.5] * 20}, {"c": ["x", "y"] * 20}])
def test_rows_on_disk_are_the_same(tmp_path: Path, columns: dict[str, Any]) -> None:
    """Arrays past the memory allowed lie on disk, with the same bits, in files that nobody has to remove."""
    left = set(Path(tempfile.gettempdir()).glob("vaeserve-*"))
    label = "y" if "y" in columns else None
    data = source(tmp_path, **columns)
    here, there = load_dataset(data, label=label), load_dataset(data, label=label, memory_bytes=10)
    assert all(isinstance(array, np.memmap) for array in there.arrays.values())
    assert not any(isinstance(array, np.memmap) for array in here.arrays.values())
    assert here.sha256() == there.sha256()
    for name, array in there.take(np.array([7, 3, 3])).items():
        np.testing.assert_array_equal(array, here.inputs[name][[7, 3, 3]])
    assert set(Path(tempfile.gettempdir()).glob("vaeserve-*")) == left


def test_a_disk_without_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the temporary folder can't hold the rows the error says how many bytes they have, and what to set."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(DataError, match="80 bytes of rows, for which .*none has no room: .*; expected TMPDIR"):
        load_dataset(source(tmp_path, n=[1.5, 2.5] * 10), memory_bytes=10)


def test_views_gather_rows_of_views() -> None:
    """Rows of rows, by slice, position or mask, are those of the whole, with their labels."""
    rows = np.arange(20, dtype=np.float32)[:, None]
    dataset = Dataset("d", Signature.numbers(["a"]), {"numeric": rows}, np.arange(20) % 2 == 1)
    view = dataset[np.array([9, 4, 7, 2])][1:]
    assert view.inputs["numeric"][:, 0].tolist() == [4, 7, 2]
    assert view.anomalous is not None
    assert view.anomalous.tolist() == [False, True, False]
    assert view[~view.anomalous].take(np.array([1, 0]))["numeric"][:, 0].tolist() == [2, 4]
    assert len(view) == 3
    assert view.sha256() == Dataset("e", view.signature, view.inputs, view.anomalous).sha256()
    assert view.sha256() != dataset[np.array([4, 7, 3])].sha256()


def test_images_are_read_with_their_labels(tmp_path: Path) -> None:
    """Images come as they are; their labels, where there are any, set the anomalies."""
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 3, 4)).astype(np.uint8)
    np.savez(tmp_path / "i.npz", X=images, y=np.arange(12) % 3 == 0)
    dataset = load_dataset(open_source(str(tmp_path / "i.npz")), memory_bytes=10)
    assert isinstance(dataset.arrays["image"], np.memmap)
    assert (dataset.inputs["image"] == images).all()
    assert dataset.anomalous is not None
    assert dataset.anomalous.tolist() == (np.arange(12) % 3 == 0).tolist()
    with pytest.raises(DataError, match="these are images; expected a table"):
        load_dataset(open_source(str(tmp_path / "i.npz")), kinds={"image": "numeric"})


def test_a_part_may_be_left_out() -> None:
    """A share of 0 for validation leaves that part empty, and the others as they would be."""
    dataset = Dataset("d", Signature.numbers(["a"]), {"numeric": np.arange(100, dtype=np.float32)[:, None]})
    parts = split(dataset, DataConfig(validation=0, calibration=0.2, test=0.1), seed=0)
    assert [len(part) for part in (parts.train, parts.validation, parts.calibration, parts.test)] == [70, 0, 20, 10]
    assert parts.validation.inputs["numeric"].shape == (0, 1)


def test_more_categories_than_rows_to_train_on_are_refused(tmp_path: Path) -> None:
    """Categories that outnumber the training rows are refused by their column."""
    dataset = load_dataset(source(tmp_path, c=[f"{i % 35}" for i in range(40)]), kinds={"c": "categorical"})
    with pytest.raises(DataError, match="column 'c': 35 categories, more than the 24 rows to train on; .* --drop 'c'"):
        split(dataset, DataConfig(), seed=0)


def test_rows_that_change_between_the_passes_are_told(tmp_path: Path) -> None:
    """Rows that come or go while they are read are an error, not rows of zeros; a table says so of its file."""
    (tmp_path / "t.csv").write_text("a\n1.5\n2.5\n")
    opened = open_source(str(tmp_path / "t.csv"))
    (tmp_path / "t.csv").write_text("a\n1.5\n2.5\n3.5\n")
    with pytest.raises(DataError, match=r"t\.csv: has changed since it was looked at"):
        load_dataset(opened)
    passes = iter([[1.5, 2.5], [1.5, 2.5, 3.5]])

    def batches(rows: int) -> Any:
        del rows
        yield pa.record_batch({"a": next(passes)})

    changing = Source("rows", pa.schema({"a": pa.float64()}), None, None, batches)
    with pytest.raises(DataError, match="rows: 3 rows, and 2 a moment ago; expected a file that stays as it is"):
        load_dataset(changing)
