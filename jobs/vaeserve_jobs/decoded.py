"""Files of decoded rows: tables with the model's columns, and images as an array or as one picture."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray
from PIL import Image

from vaeserve.atomic import new_file
from vaeserve.errors import ConfigError
from vaeserve.signature import Signature

STEP = "step"

Outputs = dict[str, NDArray[Any]]
Write = Callable[[Outputs], None]

_TABLES = (".csv", ".parquet")
_IMAGES = (".npy", ".npz", ".png")
_MODES = {1: "L", 3: "RGB"}
_GAP = 1  # pixels between the images of a picture
_WHITE = 255


def _check(out: Path, signature: Signature, *, steps: bool) -> None:
    """Raise ConfigError, naming what is expected, if `out` can't hold a model's decoded rows, by their `steps`."""
    suffixes = _TABLES if signature.columns else _IMAGES
    if out.suffix not in suffixes:
        what = "a table" if signature.columns else "images"
        raise ConfigError(f"--out {out}: expected a {' or '.join(suffixes)} file, for the model makes {what}")
    if steps and STEP in signature.features:
        raise ConfigError(f"--out {out}: the model has a column {STEP!r} of its own; rename it there")
    if out.suffix == ".png" and _channels(signature) not in _MODES:
        raise ConfigError(f"--out {out}: images of {_channels(signature)} channels; expected .npy or .npz")


@contextmanager
def new_rows(out: Path, signature: Signature, *, steps: bool = False, across: int | None = None) -> Iterator[Write]:
    """Yield what takes the decoder's outputs a batch at a time, and writes their rows to `out`: all or nothing.

    A table has the model's columns: numbers in raw units, float32, binary ones as the probability of 1, and categories
    as strings; with `steps` there is the row's position before them. Images are an array `X` uint8 [rows, channels,
    height, width], or a picture of them all, `across` of them to a line, by default about as many as there are lines.
    Raises ConfigError, naming what is expected, if `out` can't hold them or can't be written.
    """
    _check(out, signature, steps=steps)
    try:
        with new_file(out) as partial, partial.open("wb") as file:
            if signature.columns:
                with _table(file, out.suffix, signature, steps=steps) as write:
                    yield write
            else:
                images: list[NDArray[np.uint8]] = []
                yield lambda outputs: images.append(outputs["image"])
                shape = (0, *signature.inputs[0].shape[1:])
                _save(file, out, np.concatenate([np.empty(shape, np.uint8), *images]), across=across)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror}; nothing was written") from None


@contextmanager
def _table(file: IO[bytes], suffix: str, signature: Signature, *, steps: bool) -> Iterator[Write]:
    schema = _schema(signature, steps=steps)
    writer: Any = (
        pyarrow.parquet.ParquetWriter(file, schema, compression="zstd")
        if suffix == ".parquet"
        else pyarrow.csv.CSVWriter(file, schema)
    )
    rows = 0

    def write(outputs: Outputs) -> None:
        nonlocal rows
        columns = columns_of(outputs, signature)
        count = len(columns[0])
        positions = [np.arange(rows, rows + count)] if steps else []
        writer.write_batch(pa.record_batch([*positions, *columns], schema=schema))
        rows += count

    with writer:
        yield write


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


def _channels(signature: Signature) -> int:
    return signature.inputs[0].shape[1]


def _save(file: IO[bytes], out: Path, images: NDArray[np.uint8], *, across: int | None) -> None:
    if out.suffix == ".npy":
        np.save(file, images)
    elif out.suffix == ".npz":
        np.savez_compressed(file, X=images)
    elif len(images) == 0:
        raise ConfigError(f"--out {out}: a picture of no images; expected one or more, or .npy or .npz")
    else:
        picture = grid(images, across or math.ceil(math.sqrt(len(images))))
        Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(file, format="PNG")


def grid(images: NDArray[np.uint8], across: int) -> NDArray[np.uint8]:
    """Return images [rows, channels, height, width] as one picture, [height, width, channels].

    There are `across` to a line, in order from the top left, with white lines between them and white where none is.
    """
    count, channels, height, width = images.shape
    lines = math.ceil(count / across)
    shape = (lines * (height + _GAP) - _GAP, across * (width + _GAP) - _GAP, channels)
    picture = np.full(shape, _WHITE, np.uint8)
    for position, image in enumerate(images):
        line, place = divmod(position, across)
        top, left = line * (height + _GAP), place * (width + _GAP)
        picture[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return picture
