"""Rows from files and built-in data sets."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vaeserve import source as source_module
from vaeserve.errors import DataError, InvalidInputError
from vaeserve.signature import Column, Signature
from vaeserve.source import Source, images_of, inputs_of, open_source


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
        ("n" * 300, None, "File name too long"),
        ("digit", None, "did you mean the built-in digits?"),
        ("rows.xlsx", b"", r"\.xlsx; expected one of \.csv, \.parquet, \.jsonl, \.ndjson, \.npz, \.npy"),
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
    with pytest.raises(DataError, match="twice.parquet: .* multiple columns named a"):
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
        inputs_of(table, Signature.numbers(["a", "name"]))
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


def test_codes_that_look_like_numbers_can_be_read_as_text(tmp_path: Path) -> None:
    """Columns of categories are read as the text that they are, whatever a CSV file begins with."""
    lines = ["zip,a,day,empty", *["01234,1,2020-01-02,"] * 200_000, "A1,2.5,never,x"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    opened = open_source(str(tmp_path / "t.csv"))
    with pytest.raises(
        DataError, match="t.csv: column 'zip': .*; a CSV file's column is what its first rows look like"
    ):
        opened.table()
    table = opened.as_text(["zip", "day", "empty"]).as_numbers(["a"]).table()
    assert [str(field.type) for field in table.schema] == ["string", "double", "string", "string"]
    assert list(table.slice(0, 1).to_pylist()[0].values()) == ["01234", 1.0, "2020-01-02", ""]
    assert list(table.slice(200_000).to_pylist()[0].values()) == ["A1", 2.5, "never", "x"]


def test_a_batch_of_all_kinds_becomes_two_inputs() -> None:
    """Arrow's nulls are missing in numbers and in categories, also in dictionaries and in columns of nulls alone."""
    columns = [Column("n", "numeric"), Column("c", "categorical", ("x",)), Column("d", "categorical", ("x",))]
    batch = pa.record_batch(
        {"d": pa.array([None, "x"]).dictionary_encode(), "n": [None, 1], "c": pa.nulls(2), "note": ["a", "b"]}
    )
    inputs = inputs_of(batch, Signature.table(columns))
    np.testing.assert_array_equal(inputs["numeric"], [[np.nan], [1]])
    assert inputs["categorical"].tolist() == [["", ""], ["", "x"]]


def test_a_large_array_is_read_as_it_lies_on_disk(tmp_path: Path) -> None:
    """Rows of an array are read a batch at a time, of either byte order, and of text too."""
    rows = np.arange(20.0).reshape(10, 2)
    for dtype in ("<f8", ">f4", ">i2", "U4"):
        np.save(tmp_path / "a.npy", rows.astype(dtype))
        opened = open_source(str(tmp_path / "a.npy"))
        assert [batch.num_rows for batch in opened.batches(4)] == [4, 4, 2]
        expected = rows[:, 1].astype(dtype).tolist()
        assert opened.table()["x1"].to_pylist() == expected


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 1, 3, 4)).astype(np.uint8)
LABELS = np.array([3, 1, 4, 1, 5], np.uint8)


def idx(array: np.ndarray, code: int = 8) -> bytes:
    """Return an idx file's bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


def write(path: Path, content: bytes) -> Source:
    """Write a file, packed if its name says so, and open it."""
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return open_source(str(path))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte"),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte.gz"),
        ("images.idx", "labels.idx"),
    ],
)
def test_idx_files_are_images_with_the_labels_beside_them(tmp_path: Path, images: str, labels: str) -> None:
    """MNIST's files are read, packed or not; classes are a column, of which nobody is told to be normal."""
    (tmp_path / labels).write_bytes(gzip.compress(idx(LABELS)) if labels.endswith("gz") else idx(LABELS))
    opened = write(tmp_path / images, idx(IMAGES[:, 0]))
    assert (opened.is_images, opened.rows, opened.label) == (True, 5, None)
    batches = list(opened.batches(2))
    assert [batch.num_rows for batch in batches] == [2, 2, 1]
    assert (np.concatenate([images_of(batch) for batch in batches]) == IMAGES).all()
    assert opened.table()["label"].to_pylist() == LABELS.tolist()


def test_idx_files_may_have_channels_and_no_labels(tmp_path: Path) -> None:
    """Images of rank 4 have channels; labels are read in any width; without them there is no column."""
    coloured = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 5)).astype(np.uint8)
    opened = write(tmp_path / "images.idx", idx(coloured))
    assert (images_of(opened.table()) == coloured).all()
    assert opened.schema.names == ["image"]
    (tmp_path / "labels.idx").write_bytes(idx(np.array([-7, 70_000], ">i4"), 0x0C))
    assert open_source(str(tmp_path / "images.idx")).table()["label"].to_pylist() == [-7, 70_000]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.idx", b"", "a.idx: begins with nothing; expected 00 00"),
        ("a.idx", b"GIF89a", "a.idx: begins with 47 49 46 38; expected 00 00"),
        ("a.idx", idx(IMAGES)[:10], "a.idx: ends in its header; expected 4 sizes"),
        ("a.idx", idx(IMAGES)[:-1], "a.idx: 79 bytes; its header says 80"),
        ("a.idx", idx(IMAGES) + b"x", "a.idx: 81 bytes; its header says 80"),
        ("a-ubyte.gz", idx(IMAGES)[:-13], "a-ubyte.gz: ends after 3 images; its header says 5"),
        ("a-ubyte.gz", struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 28, 28), "packed; its header says .* cut short"),
        ("labels-idx1-ubyte", idx(LABELS), r"uint8 of shape \[5\]; expected images of uint8"),
        ("a.idx", idx(IMAGES.astype(">f4"), 0x0D), "float32 of shape .* expected images of uint8"),
        ("a.idx", idx(IMAGES[:, :, :0]), "expected images of uint8"),
    ],
)
def test_broken_idx_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """A file that is cut short, too long, of another type or none of images is refused by its name."""
    with pytest.raises(DataError, match=message):
        write(tmp_path / name, content).table()


def test_a_packed_file_that_ends_in_its_midst_is_named(tmp_path: Path) -> None:
    """A gzip file that was cut is no traceback, for images or labels."""
    large = np.random.default_rng(2).integers(0, 256, (500, 20, 20)).astype(np.uint8)
    packed = gzip.compress(idx(large))
    (tmp_path / "images.idx.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"images\.idx\.gz: .*end"):
        open_source(str(tmp_path / "images.idx.gz")).table()
    (tmp_path / "images.idx.gz").write_bytes(packed)
    labels = gzip.compress(idx(np.arange(500) % 251))
    (tmp_path / "labels.idx.gz").write_bytes(labels[:60])
    with pytest.raises(DataError, match=r"labels\.idx\.gz: .*end"):
        open_source(str(tmp_path / "images.idx.gz"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (idx(LABELS[:4]), r"labels.idx: labels of shape \[4\]; .*images.idx has 5 images"),
        (idx(LABELS)[:-2], "labels.idx: ends after 3 labels; its header says 5"),
    ],
)
def test_labels_of_another_number_are_refused(tmp_path: Path, labels: bytes, message: str) -> None:
    """As many labels as images are expected, and said."""
    (tmp_path / "labels.idx").write_bytes(labels)
    with pytest.raises(DataError, match=message):
        write(tmp_path / "images.idx", idx(IMAGES))


def save(path: Path, pixels: Any, mode: str | None = None) -> None:
    """Write an image, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image if mode is None else image.convert(mode)).save(path)


def test_a_folder_of_images_is_read_by_path(tmp_path: Path) -> None:
    """Images come in the order of their paths, lazily, with their files and subfolders beside them."""
    for number, name in enumerate(["bad/b.png", "good/a.bmp", "good/z.PNG", "good/deep/q.png"]):
        save(tmp_path / name, np.full((3, 4), number))
    (tmp_path / "good" / "notes.txt").write_text("not an image")
    (tmp_path / "good" / ".hidden.png").write_text("not an image")
    opened = open_source(str(tmp_path))
    assert (opened.is_images, opened.rows, opened.label) == (True, 4, None)
    table = opened.table()
    assert table["file"].to_pylist() == ["bad/b.png", "good/a.bmp", "good/deep/q.png", "good/z.PNG"]
    assert table["label"].to_pylist() == ["bad", "good", "good/deep", "good"]
    images = images_of(table)
    assert images.shape == (4, 1, 3, 4)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 3, 2]
    (tmp_path / "good" / "z.PNG").write_bytes(b"broken")
    assert next(opened.batches(2)).num_rows == 2


def test_folders_of_colour_have_three_channels_and_flat_ones_no_labels(tmp_path: Path) -> None:
    """RGB has three channels, a palette and opaque transparency too; without subfolders there are no labels."""
    pixels = np.random.default_rng(3).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    save(tmp_path / "a.png", pixels)
    save(tmp_path / "b.png", pixels, "RGBA")
    save(tmp_path / "c.png", pixels // 255 * 255, "P")
    opened = open_source(str(tmp_path))
    assert opened.schema.names == ["image", "file"]
    images = images_of(opened.table())
    assert (images[:2] == pixels.transpose(2, 0, 1)).all()
    assert images.shape == (3, 3, 3, 4)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_images_have_one_channel(tmp_path: Path, mode: str) -> None:
    """Black and white are 0 and 255, whatever the mode that an image has."""
    save(tmp_path / "a.png", [[0, 255]], mode)
    assert images_of(open_source(str(tmp_path)).table()).tolist() == [[[[0, 255]]]]


def test_images_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """An image of another size, of colour among grey ones, transparent, of 16 bits, or broken is named."""
    save(tmp_path / "a.png", np.zeros((3, 4)))
    odd = tmp_path / "odd.png"
    save(odd, np.zeros((5, 4)))
    with pytest.raises(DataError, match=r"odd.png: \[1, 5, 4\]; expected \[1, 3, 4\] .*, as a.png has"):
        open_source(str(tmp_path)).table()
    save(odd, np.zeros((3, 4, 3)))
    with pytest.raises(DataError, match=r"odd.png: \[3, 3, 4\]; expected \[1, 3, 4\]"):
        open_source(str(tmp_path)).table()
    save(odd, np.zeros((3, 4, 4)))
    with pytest.raises(DataError, match="odd.png: an image of mode RGBA; expected grey or RGB, of 8 bits and opaque"):
        open_source(str(tmp_path)).table()
    Image.fromarray(np.zeros((3, 4), np.uint16)).save(odd)
    with pytest.raises(DataError, match="odd.png: an image of mode I;16; expected grey or RGB"):
        open_source(str(tmp_path)).table()
    save(odd, np.random.default_rng(4).integers(0, 256, (40, 40)))
    for content in (b"", b"no image", odd.read_bytes()[:800]):
        odd.write_bytes(content)
        with pytest.raises(DataError, match="odd.png: can't be read as an image"):
            open_source(str(tmp_path)).table()


def test_a_folder_of_parquet_files_may_hold_no_images(tmp_path: Path, table: pa.Table) -> None:
    """Where there are Parquet files a folder is a table; an empty folder is neither."""
    pq.write_table(table, tmp_path / "0.parquet")
    assert not open_source(str(tmp_path)).is_images
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        open_source(str(tmp_path / "empty")).table()


def test_large_images_come_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A batch of images has no more bytes than a bound, however many rows were asked for."""
    monkeypatch.setattr(source_module, "IMAGE_BATCH_BYTES", 30)
    np.save(tmp_path / "i.npy", IMAGES)
    assert [batch.num_rows for batch in open_source(str(tmp_path / "i.npy")).batches()] == [2, 2, 1]


def test_what_a_folder_says_may_be_read_as_text(tmp_path: Path) -> None:
    """A folder's whole number is a category too, and a folder without a value still has none."""
    for value in ("7", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"shop={value}").mkdir()
        (tmp_path / f"shop={value}" / "t.csv").write_text("a\n1\n")
    source = open_source(str(tmp_path))
    assert source.table()["shop"].to_pylist() == [7, None]
    assert source.as_text(["shop"]).table()["shop"].to_pylist() == ["7", None]
