"""Where rows come from: files, a folder of them or a built-in data set, read as a stream of Arrow record batches.

Training, evaluation and batch jobs all read here, so that a column means the same to each of them.
A table has a column each; images have one column, `image`, of uint8 `[channels, height, width]`, perhaps with a
`label` beside it, and for folders the `file`.
"""

import difflib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaeserve.errors import DataError, InvalidInputError, MissingExtraError, first_line
from vaeserve.files import COMPRESSED, File, files_at, is_url
from vaeserve.images import IdxImages, ImageFolder, Images, images_below, is_idx
from vaeserve.signature import Signature
from vaeserve.tables import FORMATS, Piece, Table

IMAGE = "image"
LABEL = "label"
BATCH_ROWS = 16_384
IMAGE_BATCH_BYTES = 32 * 2**20

# The built-in images' held-out class: chosen before any score was seen, and kept.
DIGITS_ANOMALY = 8


@dataclass(frozen=True)
class Source:
    """A stream of rows.

    label is the column of labels, where the source itself knows one: 0 for normal, 1 for anomalies. It is None for idx
    files and folders of images, whose column `label` has classes, and only the user knows which of them is normal.
    """

    name: str
    schema: pa.Schema
    label: str | None
    rows: int | None
    _open: Callable[[int], Iterator[pa.RecordBatch]]
    _table: Table | None = None

    def as_numbers(self, names: Sequence[str]) -> "Source":
        """Return the source with these columns read as floating-point numbers, where it guessed a narrower type.

        A CSV file's types are guessed from its beginning: a column may start with whole numbers, or empty.
        """
        return self._read_as(
            pa.float64(), names, lambda guessed: pa.types.is_integer(guessed) or pa.types.is_null(guessed)
        )

    def as_text(self, names: Sequence[str]) -> "Source":
        """Return the source with these columns read as the text that they are, where it guessed another type.

        Categories such as `01` would be numbers by their looks, and those that begin as numbers needn't stay so.
        """
        return self._read_as(pa.string(), names, lambda guessed: not pa.types.is_string(guessed))

    def _read_as(self, kind: pa.DataType, names: Sequence[str], unlike: Callable[[pa.DataType], bool]) -> "Source":
        wanted = [name for name in names if name in self.schema.names and unlike(self.schema.field(name).type)]
        if self._table is None or not wanted:
            return self
        return _of_table(self.name, self._table.retyped(dict.fromkeys(wanted, kind)))

    def require(self, columns: Sequence[str]) -> None:
        """Raise DataError, naming the nearest there is, for a column that isn't there."""
        names = self.schema.names
        for column in columns:
            if column not in names:
                near = difflib.get_close_matches(column, names, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise DataError(f"{self.name}: no column {column!r}; expected one of {', '.join(sorted(names))}{hint}")

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, at most `rows` at a time.

        Raises DataError, naming the source, for what turns out to be unreadable.
        """
        try:
            yield from (batch for batch in self._open(rows) if batch.num_rows)
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self.name}: {first_line(error)}") from None

    def table(self) -> pa.Table:
        """Return all rows; raises DataError if there are none."""
        table = pa.Table.from_batches(self.batches(), schema=self.schema)
        if table.num_rows == 0:
            raise DataError(f"{self.name}: no rows; expected one or more")
        return table

    @property
    def guessed(self) -> frozenset[str]:
        """The columns whose types are guessed from the first rows."""
        return self._table.guessed if self._table else frozenset()

    @property
    def files(self) -> tuple[File, ...]:
        """The files of a table; none where rows come from elsewhere."""
        return self._table.files if self._table else ()

    def cut(self, file: int, rows: int) -> list[Piece]:
        """Return the pieces of a table's file, by its position, of `rows` rows or so each: what `read` reads.

        What is no table is one piece. Raises DataError, naming the file, if it can't be read.
        """
        if self._table is None:
            return [Piece(0, 0, 1, self.rows or 0)]
        return self._table.cut(file, rows)

    def missing(self, file: int, columns: Sequence[str]) -> list[str]:
        """Return which of some columns a table's file lacks."""
        return [] if self._table is None else self._table.missing(file, columns)

    def read(self, piece: Piece, columns: Sequence[str], rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield some columns of a piece, at most `rows` rows at a time; raises as `batches` does."""
        if self._table is None:
            yield from (batch.select(list(columns)) for batch in self.batches(rows))
        else:
            yield from self._table.read(piece, columns, rows)

    @property
    def is_images(self) -> bool:
        """Whether the rows are images."""
        return IMAGE in self.schema.names and isinstance(self.schema.field(IMAGE).type, pa.FixedShapeTensorType)


def open_source(name: str) -> Source:
    """Open a `.csv`, `.parquet`, `.jsonl`, `.npz`, `.npy` or idx file, a folder, or a built-in data set.

    A folder has tables of one format, perhaps in folders `NAME=VALUE`, whose names and values are columns then, or
    images. Tables may be an object store's, by their URL. Raises DataError, naming the source, if there is no such
    thing or it can't be read.
    """
    if name in BUILT_IN:
        return BUILT_IN[name](name)
    path = Path(name)
    try:
        if not is_url(name) and path.is_file() and not _is_table(path.name):
            return _opened(path)
        files = files_at(name)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: {first_line(error)}") from None
    if files is None:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean the built-in {near[0]}?" if near else ""
        raise DataError(f"{name}: no such file, folder or built-in data set ({', '.join(BUILT_IN)}){hint}")
    tables = [file for file in files if file.suffix in FORMATS]
    if tables:
        return _of_table(name, Table.open(tables, folder=name))
    if not is_url(name) and path.is_dir() and (images := images_below(path)):
        return _read(path, lambda path: _images(str(path), ImageFolder.open(path, images)), "a folder of images")
    raise DataError(f"{name}: no files of {', '.join(FORMATS)} in it, nor images; expected some of one kind")


def _is_table(name: str) -> bool:
    path = PurePath(name.lower())
    return (PurePath(path.stem) if path.suffix in COMPRESSED else path).suffix in FORMATS


def _opened(path: Path) -> Source:
    """Open a file that is no table."""
    if is_idx(path):
        return _read(path, lambda path: _images(str(path), IdxImages.open(path)), "idx")
    if path.suffix.lower() in _ARRAYS:
        return _read(path, _numpy, path.suffix.lower())
    raise DataError(
        f"{path}: {path.suffix or 'no suffix'}; expected one of {', '.join([*FORMATS, *_ARRAYS])}, an idx file (.idx, "
        "-ubyte, .gz), or a folder of tables or of images"
    )


def _read(path: Path, opened: Callable[[Path], Source], form: str) -> Source:
    try:
        return opened(path)
    except (pa.ArrowException, OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: can't be read as {form}: {first_line(error)}") from None


def _of_table(name: str, table: Table) -> Source:
    return Source(name, table.schema, None, table.rows, table.batches, table)


def inputs_of(batch: pa.RecordBatch | pa.Table, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return a batch's rows as a model's input tensors.

    Raises InvalidInputError, naming the column, where they don't fit.
    """
    if signature.columns:
        _refuse_text(batch, [column.name for column in signature.numeric_columns])
        columns = _arrays_of(batch, signature)
        # Columns that are called as tensors are would be taken for those.
        mistaken = set(columns) == {spec.name for spec in signature.inputs}
        return signature.inputs_from(pa.table(batch) if mistaken else columns)
    if IMAGE not in batch.schema.names:
        raise InvalidInputError(f"rows: columns {', '.join(batch.schema.names)}; the model takes images")
    return signature.check({IMAGE: images_of(batch)})


def _arrays_of(batch: pa.RecordBatch | pa.Table, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return the model's columns of a batch as arrays, as `Signature` would make them of a table, but sooner."""
    arrays = {}
    for column in signature.columns:
        if column.name in batch.schema.names:
            values = batch.column(column.name)
            coded = pa.types.is_integer(values.type) or pa.types.is_dictionary(values.type)
            if column.kind == "categorical" and coded:  # as numbers beside nulls they would be rounded
                values = values.cast(pa.string())
            some = values if isinstance(values, pa.Array) else values.combine_chunks()
            arrays[column.name] = some.to_numpy(zero_copy_only=False)
    return arrays


def images_of(batch: pa.RecordBatch | pa.Table) -> NDArray[np.uint8]:
    """Return the images of a batch, `[rows, channels, height, width]`."""
    column = batch.column(IMAGE)
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat: NDArray[np.uint8] = array.storage.flatten().to_numpy()
    return flat.reshape(len(array), *array.type.shape)


def is_number(kind: pa.DataType) -> bool:
    """Tell whether a column of this type can be learned from as a number."""
    return bool(
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    )


def _refuse_text(batch: pa.RecordBatch | pa.Table, names: list[str]) -> None:
    for name in names:
        if name in batch.schema.names and not is_number(kind := batch.schema.field(name).type):
            first = next(iter(batch.column(name)), pa.scalar(None)).as_py()
            raise InvalidInputError(f"column {name!r}: {kind}, {first!r} in the first row; the model takes numbers")


def _numpy(path: Path) -> Source:
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if not is_zip:
        return _arrays(str(path), np.load(path, allow_pickle=False, mmap_mode="r"), labels=None)
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if "X" not in arrays:
            raise ValueError(f"arrays {', '.join(arrays)}; expected X (rows), and y (labels) if there are any")
        return _arrays(str(path), arrays["X"], arrays.get("y"))


def _arrays(name: str, rows: NDArray[Any], labels: NDArray[Any] | None) -> Source:
    if labels is not None and labels.shape != rows.shape[:1]:
        raise ValueError(f"y has shape {list(labels.shape)}; X has shape {list(rows.shape)}")
    known = {} if labels is None else {LABEL: labels}
    if rows.ndim == 2:
        return _rows(name, rows, known)
    if rows.ndim in (3, 4) and rows.dtype == np.uint8:
        channels, height, width = rows.shape[1:] if rows.ndim == 4 else (1, *rows.shape[1:])
        images = _Pixels(rows.reshape(len(rows), channels, height, width), (channels, height, width), known)
        return _images(name, images, label=None if labels is None else LABEL)
    raise ValueError(
        f"X has shape {list(rows.shape)} of {rows.dtype}; expected [rows, columns] of numbers, or "
        "[rows, height, width] or [rows, channels, height, width] of uint8"
    )


def _rows(name: str, rows: NDArray[Any], beside: Mapping[str, NDArray[Any]]) -> Source:
    """Return the source of a 2-D array, which may lie on disk."""
    native = rows.dtype.newbyteorder("=")

    def columns(start: int, stop: int) -> dict[str, pa.Array]:
        return {
            f"x{index}": pa.array(np.ascontiguousarray(rows[start:stop, index], native))
            for index in range(rows.shape[1])
        }

    def batches(batch_rows: int) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(rows), batch_rows):
            stop = min(start + batch_rows, len(rows))
            yield _batch(columns(start, stop), beside, start, stop)

    schema = _batch(columns(0, 0), beside, 0, 0).schema
    return Source(name, schema, LABEL if LABEL in beside else None, len(rows), batches)


@dataclass(frozen=True)
class _Pixels:
    """Images in an array, which may lie on disk."""

    array: NDArray[np.uint8]
    shape: tuple[int, int, int]
    columns: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.array)

    def batches(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self.array), rows):
            yield self.array[start : start + rows]


def _images(name: str, images: Images, *, label: str | None = None) -> Source:
    """Return the source of images, and of what is known beside them."""
    size = math.prod(images.shape)
    if size == 0:
        raise ValueError(f"images of shape {list(images.shape)}; expected channels, height and width of 1 or more")
    kind = pa.fixed_shape_tensor(pa.uint8(), images.shape)
    beside = {column: pa.array(values) for column, values in images.columns.items()}

    def tensors(some: NDArray[np.uint8]) -> dict[str, pa.Array]:
        return {
            IMAGE: pa.ExtensionArray.from_storage(
                kind, pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), size)
            )
        }

    def batches(batch_rows: int) -> Iterator[pa.RecordBatch]:
        start = 0
        for some in images.batches(min(batch_rows, max(1, IMAGE_BATCH_BYTES // size))):
            yield _batch(tensors(some), beside, start, start + len(some))
            start += len(some)

    schema = _batch(tensors(np.empty(0, np.uint8)), beside, 0, 0).schema
    return Source(name, schema, label, len(images), batches)


def _batch(columns: dict[str, pa.Array], beside: Mapping[str, Any], start: int, stop: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns | {name: pa.array(some[start:stop]) for name, some in beside.items()})


def _breast_cancer(name: str) -> Source:
    """Return the table of breast tumours; malignant ones are the anomalies (scikit-learn codes benign as 1)."""
    data = _sklearn("load_breast_cancer")
    columns = {str(name): pa.array(values) for name, values in zip(data.feature_names, data.data.T, strict=True)}
    table = pa.table({**columns, LABEL: (data.target == 0).astype(np.int64)})
    return Source(name, table.schema, LABEL, table.num_rows, lambda rows: iter(table.to_batches(max_chunksize=rows)))


def _digits(name: str) -> Source:
    """Return 8 x 8 images of written digits; one class is the anomaly."""
    data = _sklearn("load_digits")
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[:, None]  # (rows, 1, 8, 8), from 0..16
    labels = (data.target == DIGITS_ANOMALY).astype(np.int64)
    return _images(name, _Pixels(images, (1, 8, 8), {LABEL: labels}), label=LABEL)


def _sklearn(loader: str) -> Any:
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise MissingExtraError("the built-in data sets take scikit-learn: pip install 'vaeserve[train]'") from None
    return getattr(datasets, loader)()


BUILT_IN: dict[str, Callable[[str], Source]] = {"breast-cancer": _breast_cancer, "digits": _digits}

_ARRAYS = (".npz", ".npy")
