"""Files of decoded rows: tables with the model's columns, and images as an array or as one picture."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from PIL import Image

from vaeserve.errors import ConfigError
from vaeserve.signature import Signature
from vaeserve_jobs.output import new_output, writing

STEP = "step"

Outputs = dict[str, NDArray[Any]]
Write = Callable[[Outputs], None]

_TABLES = (".csv", ".parquet")
_IMAGES = (".npy", ".npz", ".png")
_MODES = {1: "L", 3: "RGB"}
_GAP = 1  # pixels between the images of a picture
_WHITE = 255
# More are nothing to look at, and a picture of more pixels is what Pillow warns of when it opens one.
_MOST_IMAGES, _MOST_PIXELS = 10_000, 2**26


def _check(out: Path, signature: Signature, *, rows: int, steps: bool, across: int) -> None:
    """Raise ConfigError, naming what is expected, if `out` can't hold a model's decoded rows, by their `steps`."""
    suffixes = _TABLES if signature.columns else _IMAGES
    if out.suffix not in suffixes:
        what = "a table" if signature.columns else "images"
        raise ConfigError(f"--out {out}: expected a {' or '.join(suffixes)} file, for the model makes {what}")
    if steps and STEP in signature.features:
        raise ConfigError(f"--out {out}: the model has a column {STEP!r} of its own; rename it there")
    if out.suffix == ".png":
        _check_picture(out, signature, images=rows, across=across)


def _check_picture(out: Path, signature: Signature, *, images: int, across: int) -> None:
    channels, height, width = signature.inputs[0].shape[1:]
    if channels not in _MODES:
        raise ConfigError(f"--out {out}: images of {channels} channels; expected .npy or .npz")
    if not 0 < images <= _MOST_IMAGES:
        raise ConfigError(f"--out {out}: a picture of {images} images; expected 1 to {_MOST_IMAGES}, or .npy or .npz")
    lines, columns = _size(images, across, height=height, width=width)
    if lines * columns > _MOST_PIXELS:
        raise ConfigError(
            f"--out {out}: a picture of {columns} x {lines} pixels; expected {_MOST_PIXELS} at most, or .npy or .npz"
        )


@contextmanager
def new_rows(
    out: Path, signature: Signature, *, rows: int, steps: bool = False, across: int | None = None
) -> Iterator[Write]:
    """Yield what takes the decoder's outputs a batch at a time, and writes their `rows` to `out`: all or nothing.

    A table has the model's columns: numbers in raw units, float32, binary ones as the probability of 1, and categories
    as strings; with `steps` there is the row's position before them. Images are an array `X` uint8 [rows, channels,
    height, width], or a picture of them all, `across` of them to a line, by default about as many as there are lines.
    Raises ConfigError, naming what is expected, if `out` can't hold them or can't be written.
    """
    across = across or math.ceil(math.sqrt(rows))
    _check(out, signature, rows=rows, steps=steps, across=across)

    def opened(path: Path) -> AbstractContextManager[Write]:
        return _table(path, out, signature, steps=steps) if signature.columns else _images(path, out, signature, across)

    with new_output(out, opened) as write:
        yield write


@contextmanager
def _images(path: Path, out: Path, signature: Signature, across: int) -> Iterator[Write]:
    images = [np.empty((0, *signature.inputs[0].shape[1:]), np.uint8)]
    with path.open("wb") as file:
        yield lambda outputs: images.append(outputs["image"])
        _save(file, out.suffix, np.concatenate(images), across=across)


@contextmanager
def _table(path: Path, out: Path, signature: Signature, *, steps: bool) -> Iterator[Write]:
    schema = _schema(signature, steps=steps)
    rows = 0

    def write(outputs: Outputs) -> None:
        nonlocal rows
        columns = columns_of(outputs, signature)
        count = len(columns[0])
        positions = [np.arange(rows, rows + count)] if steps else []
        with writing(out):
            writer.write_batch(pa.record_batch([*positions, *columns], schema=schema))
        rows += count

    with path.open("wb") as file, _writer(file, out.suffix, schema) as writer:
        yield write


def _writer(file: IO[bytes], suffix: str, schema: pa.Schema) -> Any:
    if suffix == ".parquet":
        return pyarrow.parquet.ParquetWriter(file, schema, compression="zstd")
    return pyarrow.csv.CSVWriter(file, schema)


def _schema(signature: Signature, *, steps: bool) -> pa.Schema:
    fields = [
        pa.field(column.name, pa.string() if column.kind == "categorical" else pa.float32())
        for column in signature.columns
    ]
    return pa.schema([pa.field(STEP, pa.int64()), *fields] if steps else fields)


def columns_of(outputs: Outputs, signature: Signature) -> list[NDArray[Any]]:
    """Return the columns of a table's decoded rows, in the signature's order, one value a row each."""
    numbers = iter(outputs["numeric"].T if signature.numeric_columns else ())
    strings = iter(outputs["categorical"].T if signature.categorical_columns else ())
    return [next(strings if column.kind == "categorical" else numbers) for column in signature.columns]


def _save(file: IO[bytes], suffix: str, images: NDArray[np.uint8], *, across: int) -> None:
    if suffix == ".npy":
        np.save(file, images)
    elif suffix == ".npz":
        np.savez_compressed(file, X=images)
    else:
        picture = grid(images, across)
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(file, format="PNG")


def grid(images: NDArray[np.uint8], across: int) -> NDArray[np.uint8]:
    """Return images [rows, channels, height, width] as one picture, [height, width, channels].

    There are `across` to a line, in order from the top left, with white lines between them and white where none is.
    """
    count, channels, height, width = images.shape
    picture = np.full((*_size(count, across, height=height, width=width), channels), _WHITE, np.uint8)
    for position, image in enumerate(images):
        line, place = divmod(position, across)
        top, left = line * (height + _GAP), place * (width + _GAP)
        picture[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return picture


def _size(count: int, across: int, *, height: int, width: int) -> tuple[int, int]:
    """Return the height and width of a picture of `count` images, in pixels."""
    return math.ceil(count / across) * (height + _GAP) - _GAP, across * (width + _GAP) - _GAP
