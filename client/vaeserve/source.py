"""Where rows come from: a file, a folder or a built-in data set, read as a stream of Arrow record batches.

Training, evaluation and batch jobs all read here, so that a column means the same to each of them.
A table has a column each; images have one column, `image`, of uint8 `[channels, height, width]`.
"""

import difflib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
from numpy.typing import NDArray

from vaeserve.errors import DataError, InvalidInputError, MissingExtraError, first_line
from vaeserve.signature import Signature

IMAGE = "image"
BATCH_ROWS = 16_384

# The built-in images' held-out class: chosen before any score was seen, and kept.
DIGITS_ANOMALY = 8


@dataclass(frozen=True)
class Source:
    """A stream of rows.

    label is the column of labels, where the source itself knows one: 0 for normal, 1 for anomalies.
    """

    name: str
    schema: pa.Schema
    label: str | None
    rows: int | None
    _open: Callable[[int], Iterator[pa.RecordBatch]]
    _retype: "Callable[[list[str]], Source] | None" = None

    def as_numbers(self, names: Sequence[str]) -> "Source":
        """Return the source with these columns read as floating-point numbers, where it guessed a narrower type.

        A CSV file's types are guessed from its beginning: a column may start with whole numbers, or empty.
        """
        if self._retype is None:
            return self
        guessed = {name: self.schema.field(name).type for name in names if name in self.schema.names}
        narrow = [name for name, kind in guessed.items() if pa.types.is_integer(kind) or pa.types.is_null(kind)]
        return self._retype(narrow)

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, at most `rows` at a time.

        Raises DataError, naming the source, for what turns out to be unreadable.
        """
        try:
            yield from (batch for batch in self._open(rows) if batch.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name}: {first_line(error)}") from None

    def table(self) -> pa.Table:
        """Return all rows; raises DataError if there are none."""
        table = pa.Table.from_batches(self.batches(), schema=self.schema)
        if table.num_rows == 0:
            raise DataError(f"{self.name}: no rows; expected one or more")
        return table

    @property
    def is_images(self) -> bool:
        """Whether the rows are images."""
        return IMAGE in self.schema.names and isinstance(self.schema.field(IMAGE).type, pa.FixedShapeTensorType)


def open_source(name: str) -> Source:
    """Open a `.csv`, `.parquet`, `.npz` or `.npy` file, a folder of Parquet files, or a built-in data set.

    Raises DataError, naming the source, if there is no such thing or it can't be read.
    """
    if name in BUILT_IN:
        return BUILT_IN[name](name)
    path = Path(name)
    if not path.exists():
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"; did you mean the built-in {near[0]}?" if near else ""
        raise DataError(f"{name}: no such file, folder or built-in data set ({', '.join(BUILT_IN)}){hint}")
    suffix = ".parquet" if path.is_dir() else path.suffix.lower()
    if suffix not in _READERS:
        raise DataError(
            f"{name}: {suffix or 'no suffix'}; expected one of {', '.join(_READERS)}, or a folder of Parquet files"
        )
    try:
        return _READERS[suffix](path)
    except (pa.ArrowException, OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{name}: can't be read as {suffix}: {first_line(error)}") from None


def inputs_of(batch: pa.RecordBatch | pa.Table, signature: Signature) -> dict[str, NDArray[Any]]:
    """Return a batch's rows as a model's input tensors.

    Raises InvalidInputError, naming the column, where they don't fit.
    """
    if signature.columns:
        _refuse_text(batch, [column.name for column in signature.columns])
        return signature.inputs_from(pa.table(batch))
    if IMAGE not in batch.schema.names:
        raise InvalidInputError(f"rows: columns {', '.join(batch.schema.names)}; the model takes images")
    return signature.check({IMAGE: images_of(batch)})


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


def text_columns(batch: pa.RecordBatch | pa.Table, names: list[str]) -> dict[str, str]:
    """Return those of the named columns that aren't numbers, each with its type and its first value."""
    return {
        name: f"{batch.schema.field(name).type}, {batch.column(name)[0].as_py()!r} in the first row"
        for name in names
        if name in batch.schema.names and not is_number(batch.schema.field(name).type)
    }


def _refuse_text(batch: pa.RecordBatch | pa.Table, names: list[str]) -> None:
    for name, described in text_columns(batch, names).items():
        raise InvalidInputError(f"column {name!r}: {described}; the model takes numbers")


def _csv(path: Path, numbers: Sequence[str] = ()) -> Source:
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(numbers, pa.float64()))
    file_format = pyarrow.dataset.CsvFileFormat(convert_options=convert)
    source = _dataset(path, pyarrow.dataset.dataset(path, format=file_format), rows=None)
    return replace(source, _retype=partial(_csv, path))


def _parquet(path: Path) -> Source:
    # Bits that rotted are told where the writer left checksums.
    checked = pyarrow.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    file_format = pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=checked)
    dataset = pyarrow.dataset.dataset(path, format=file_format)
    return _dataset(path, dataset, rows=dataset.count_rows())


def _dataset(path: Path, dataset: pyarrow.dataset.Dataset, *, rows: int | None) -> Source:
    _ = dataset.schema.names  # which raises for names that are no UTF-8
    return Source(
        name=str(path),
        schema=dataset.schema,
        label=None,
        rows=rows,
        _open=lambda batch_rows: dataset.to_batches(batch_size=batch_rows),
    )


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
    if rows.ndim == 2:
        names = [f"x{index}" for index in range(rows.shape[1])]
        return _table(name, dict(zip(names, rows.T, strict=True)), labels)
    if rows.ndim in (3, 4) and rows.dtype == np.uint8:
        return _images(name, rows if rows.ndim == 4 else rows[:, None], labels)
    raise ValueError(
        f"X has shape {list(rows.shape)} of {rows.dtype}; expected [rows, columns] of numbers, or "
        "[rows, height, width] or [rows, channels, height, width] of uint8"
    )


def _table(name: str, columns: dict[str, NDArray[Any]], labels: NDArray[Any] | None) -> Source:
    return _in_memory(name, {key: pa.array(values) for key, values in columns.items()}, labels)


def _images(name: str, images: NDArray[np.uint8], labels: NDArray[Any] | None) -> Source:
    kind = pa.fixed_shape_tensor(pa.uint8(), images.shape[1:])
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), int(np.prod(images.shape[1:])))
    column = pa.ExtensionArray.from_storage(kind, pixels)
    return _in_memory(name, {IMAGE: column}, labels)


def _in_memory(name: str, columns: dict[str, pa.Array], labels: NDArray[Any] | None) -> Source:
    if labels is not None:
        columns = {**columns, "label": pa.array(labels)}
    table = pa.table(columns)
    return Source(
        name=name,
        schema=table.schema,
        label=None if labels is None else "label",
        rows=table.num_rows,
        _open=lambda batch_rows: iter(table.to_batches(max_chunksize=batch_rows)),
    )


def _breast_cancer(name: str) -> Source:
    """Return the table of breast tumours; malignant ones are the anomalies (scikit-learn codes benign as 1)."""
    data = _sklearn("load_breast_cancer")
    columns = dict(zip(map(str, data.feature_names), data.data.T, strict=True))
    return _table(name, columns, (data.target == 0).astype(np.int64))


def _digits(name: str) -> Source:
    """Return 8 x 8 images of written digits; one class is the anomaly."""
    data = _sklearn("load_digits")
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[:, None]  # (rows, 1, 8, 8), from 0..16
    return _images(name, images, (data.target == DIGITS_ANOMALY).astype(np.int64))


def _sklearn(loader: str) -> Any:
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise MissingExtraError("the built-in data sets take scikit-learn: pip install 'vaeserve[train]'") from None
    return getattr(datasets, loader)()


BUILT_IN: dict[str, Callable[[str], Source]] = {"breast-cancer": _breast_cancer, "digits": _digits}

_READERS: dict[str, Callable[[Path], Source]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".npz": _numpy,
    ".npy": _numpy,
}
