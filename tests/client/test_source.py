"""Rows from files and built-in data sets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vaeserve.errors import DataError, InvalidInputError
from vaeserve.signature import Signature
from vaeserve.source import images_of, inputs_of, open_source


@pytest.fixture
def table() -> pa.Table:
    """A small table."""
    return pa.table({"a": [1.0, 2.0, 3.0], "b": [4, 5, 6], "name": ["x", "y", "z"]})


def test_files_of_every_format_give_the_same_table(tmp_path: Path, table: pa.Table) -> None:
    """CSV, Parquet and a folder of Parquet files read as the same columns."""
    (tmp_path / "t.csv").write_text("a,b,name\n1.0,4,x\n2.0,5,y\n3.0,6,z\n")
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "folder").mkdir()
    pq.write_table(table[:2], tmp_path / "folder" / "0.parquet")
    pq.write_table(table[2:], tmp_path / "folder" / "1.parquet")
    for name in ("t.csv", "t.parquet", "folder"):
        assert open_source(str(tmp_path / name)).table() == table


def test_arrays_are_tables_or_images_with_labels(tmp_path: Path) -> None:
    """A 2-D array is a table of x0, x1, ...; bytes in 3-D or 4-D are images; y holds the labels."""
    np.savez(tmp_path / "t.npz", X=np.arange(6.0).reshape(3, 2), y=np.array([0, 1, 0]))
    source = open_source(str(tmp_path / "t.npz"))
    assert source.table().to_pydict() == {"x0": [0, 2, 4], "x1": [1, 3, 5], "label": [0, 1, 0]}
    assert (source.label, source.rows) == ("label", 3)
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    np.save(tmp_path / "i.npy", images)
    read = open_source(str(tmp_path / "i.npy"))
    assert read.is_images
    assert (images_of(read.table()) == images).all()
    np.save(tmp_path / "grey.npy", images[:, 0])
    assert images_of(open_source(str(tmp_path / "grey.npy")).table()).shape == (2, 1, 4, 5)


def test_batches_are_at_most_as_large_as_asked(tmp_path: Path) -> None:
    """Rows come in order, in batches of at most the size asked for, of images too."""
    images = np.arange(10 * 4, dtype=np.uint8).reshape(10, 1, 2, 2)
    np.save(tmp_path / "i.npy", images)
    batches = list(open_source(str(tmp_path / "i.npy")).batches(4))
    assert [batch.num_rows for batch in batches] == [4, 4, 2]
    assert (np.concatenate([images_of(batch) for batch in batches]) == images).all()


def test_breast_cancer_calls_malignant_tumours_anomalous() -> None:
    """scikit-learn codes benign as 1; here an anomaly is 1: the 212 malignant ones."""
    table = open_source("breast-cancer").table()
    assert table.num_rows == 569
    assert sum(table["label"].to_pylist()) == 212
    # Malignant tumours are the larger ones.
    means = table.group_by("label").aggregate([("mean area", "mean")]).to_pydict()
    area = dict(zip(means["label"], means["mean area_mean"], strict=True))
    assert area[1] > 1.5 * area[0]


def test_digits_are_images_with_one_class_held_out() -> None:
    """The digits are 8 x 8 images of the whole grey range, and one class of ten is the anomaly."""
    table = open_source("digits").table()
    images = images_of(table)
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (0, 255)
    assert sum(table["label"].to_pylist()) == 174


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.csv", None, "no such file, folder or built-in data set"),
        ("digit", None, "did you mean the built-in digits?"),
        ("rows.xlsx", b"", r"\.xlsx; expected one of \.csv, \.parquet, \.npz, \.npy"),
        ("empty.csv", b"", "can't be read as .csv"),
        ("header.csv", b"a,b\n", "no rows; expected one or more"),
        ("ragged.csv", b"a,b\n1,2\n3\n", "Expected 2 columns, got 1"),
        ("twice.csv", b"a,a\n1,2\n", "multiple columns named a"),
        ("cut.parquet", b"PAR1\0\0", "can't be read as .parquet"),
        ("cut.npz", b"PK\x03\x04", "can't be read as .npz"),
        ("text.npy", b"1,2", "can't be read as .npy"),
        ("latin.csv", b"gr\xf6\xdfe\n1\n", "can't be read as .csv: .*utf-8"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    """A missing, empty or broken file gets one message with its name."""
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refusal:
        open_source(str(path) if name != "digit" else name).table()
    assert name in str(refusal.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"rows": np.zeros((2, 2))}, "arrays rows; expected X"),
        ({"X": np.zeros(3)}, r"X has shape \[3\]"),
        ({"X": np.zeros((2, 3, 3))}, "float64; expected .* uint8"),
        ({"X": np.zeros((2, 3)), "y": np.zeros(3)}, r"y has shape \[3\]; X has shape"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    """Arrays that are neither a table nor images are refused with what was expected."""
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path / "a.npz"))


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """A Parquet file with a name twice is refused by that name: for which would be meant is unknown."""
    pq.write_table(pa.table([[1.0], [2.0]], names=["a", "a"]), tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="twice.parquet: .* duplicate field names"):
        open_source(str(tmp_path / "twice.parquet"))


def test_a_column_that_turns_to_text_far_down_is_named(tmp_path: Path) -> None:
    """A CSV column that is numbers for a long while and then a word is an error of the file's, not a traceback."""
    (tmp_path / "late.csv").write_text("a\n" + "1\n" * 2_000_000 + "late\n")
    with pytest.raises(DataError, match="late"):
        for _ in open_source(str(tmp_path / "late.csv")).batches():
            pass


def test_a_batch_of_text_is_refused_by_column(table: pa.Table) -> None:
    """Text where the model takes numbers is refused with the column, its type and a value."""
    with pytest.raises(InvalidInputError, match="column 'name': string, 'x' in the first row; the model takes numbers"):
        inputs_of(table, Signature.table(["a", "name"]))
    with pytest.raises(InvalidInputError, match="columns a, b, name; the model takes images"):
        inputs_of(table, Signature.image((1, 2, 2)))


def test_a_guess_of_whole_numbers_can_be_widened(tmp_path: Path) -> None:
    """Columns that a CSV begins as whole numbers, or empty, can be read as numbers; ids stay what they are."""
    lines = ["id,a,b", *(f"{i},{i}," for i in range(300_000)), "7,1.5,2.5"]
    (tmp_path / "late.csv").write_text("\n".join(lines) + "\n")
    source = open_source(str(tmp_path / "late.csv"))
    with pytest.raises(DataError, match=r"late\.csv: .*conversion error"):
        source.table()
    table = source.as_numbers(["a", "b"]).table()
    assert [str(field.type) for field in table.schema] == ["int64", "double", "double"]
    assert (table["a"][-1].as_py(), table["b"][-1].as_py(), table["b"][0].as_py()) == (1.5, 2.5, None)


def test_arrays_are_known_by_their_content(tmp_path: Path) -> None:
    """An array is read as what it is, whatever its suffix says."""
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    assert open_source(str(tmp_path / "a.npz")).rows == 2
    np.savez(tmp_path / "b.npz", X=np.zeros((2, 3)))
    (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    assert open_source(str(tmp_path / "b.npy")).rows == 2
