"""Datasets, their labels and their parts."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeserve.errors import DataError
from vaeserve.signature import Signature
from vaeserve.source import Source, open_source
from vaeserve_training.config import DataConfig
from vaeserve_training.data import Dataset, load_dataset, split


def source(path: Path, **columns: list[object]) -> Source:
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
        ({"a": [1], "c": ["x"], "d": ["y"]}, {}, "column 'c' .and 1 more.: string, 'x' .* --drop 'c' --drop 'd'"),
        ({"a": [1.0, None, None]}, {}, "column 'a': 2 missing or infinite values, the first in row 1; .* --drop 'a'"),
        ({"a": [1.0, float("inf")]}, {}, "column 'a': 1 missing or infinite"),
        ({"a": [1.0, 1e300]}, {}, "column 'a': 1 missing or infinite"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    tmp_path: Path, columns: dict[str, list[object]], options: dict[str, str], message: str
) -> None:
    """A wrong label, text and missing values are refused with the column, the value and what to do."""
    with pytest.raises(DataError, match=message):
        load_dataset(source(tmp_path, **columns), **options)


@given(st.integers(10, 300), st.integers(0, 20), st.integers(0, 5))
def test_parts_share_no_row_and_keep_anomalies_out(normal: int, anomalous: int, seed: int) -> None:
    """Every row is in one part; anomalous rows are in the test alone."""
    count = normal + anomalous
    rows = np.arange(count, dtype=np.float32)[:, None]
    labels = np.random.default_rng(seed).permutation(count) < anomalous
    dataset = Dataset("d", Signature.table(["a"]), {"numeric": rows}, labels)
    parts = split(dataset, DataConfig(), seed=seed)
    everything = [parts.train, parts.validation, parts.calibration, parts.test]
    assert sorted(np.concatenate([part.inputs["numeric"][:, 0] for part in everything])) == list(range(count))
    assert not any(part.anomalous.any() for part in everything[:3])  # type: ignore[union-attr]
    assert parts.test.anomalous.sum() == anomalous  # type: ignore[union-attr]


def test_the_split_is_the_seeds() -> None:
    """The same seed splits alike, another differently."""
    dataset = Dataset("d", Signature.table(["a"]), {"numeric": np.arange(100, dtype=np.float32)[:, None]})
    first, again, other = (split(dataset, DataConfig(), seed=seed) for seed in (1, 1, 2))
    assert first.train.sha256() == again.train.sha256() != other.train.sha256()


def test_too_few_rows_are_refused() -> None:
    """Fewer normal rows than make four parts are refused with the number needed."""
    dataset = Dataset("d", Signature.table(["a"]), {"numeric": np.zeros((9, 1), np.float32)})
    with pytest.raises(DataError, match="d: 9 normal rows; expected 10 or more"):
        split(dataset, DataConfig(), seed=0)


def test_constant_columns_are_named(tmp_path: Path) -> None:
    """Columns with one value only are told, for nothing can be learned from them."""
    assert load_dataset(source(tmp_path, a=[1, 2], b=[3, 3])).constant_columns == ["b"]
