"""Files of images, read a few at a time: idx files, as MNIST comes in, and folders of PNG, JPEG and the like."""

import gzip
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import DataError, MissingExtraError, first_line

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_LARGEST_DEFLATION = 1032  # no gzip file holds more than so many times its size
_OPAQUE = 255

Shape = tuple[int, int, int]


class Images(Protocol):
    """Images of one shape, [channels, height, width], and the columns beside them."""

    @property
    def shape(self) -> Shape:
        """The shape of each."""
        ...

    @property
    def columns(self) -> Mapping[str, Any]:
        """What else is known of each image: values by name, an entry an image."""
        ...

    def __len__(self) -> int: ...

    def batches(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the images in order, at most `rows` at a time."""
        ...


@dataclass(frozen=True)
class IdxImages:
    """An idx file of bytes, `[images, height, width]` or `[images, channels, height, width]`.

    Where the file of labels lies beside it by MNIST's convention (`...images-idx3...` and `...labels-idx1...`), the
    column `label` has them.
    """

    path: Path
    count: int
    shape: Shape
    columns: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the header and the labels; raises DataError, naming the file, for what is no such file, or cut short."""
        dtype, sizes = _header(path)
        if dtype != np.uint8 or len(sizes) not in (3, 4) or 0 in sizes[1:]:
            raise DataError(
                f"{path}: {dtype.name} of shape {sizes}; expected images of uint8, [images, height, width] or "
                "[images, channels, height, width]"
            )
        count, *shape = sizes
        channels, height, width = shape if len(shape) == 3 else (1, *shape)
        _refuse_other_size(path, _header_bytes(sizes) + math.prod(sizes))
        labels = _labels_of(path)
        columns = {} if labels is None else {"label": _read_labels(labels, count, path)}
        return cls(path, count, (channels, height, width), columns)

    def __len__(self) -> int:
        return self.count

    def batches(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the images in order; raises DataError, naming the file, if it ends before they do."""
        size = math.prod(self.shape)
        with _opened(self.path) as file:
            _header(self.path, file)
            for start in range(0, self.count, rows):
                many = min(rows, self.count - start)
                pixels = file.read(many * size)
                if len(pixels) < many * size:
                    whole = start + len(pixels) // size
                    raise DataError(f"{self.path}: ends after {whole} images; its header says {self.count}")
                yield np.frombuffer(pixels, np.uint8).reshape(many, *self.shape)


def is_idx(path: Path) -> bool:
    """Tell by its name whether a file is an idx file: `...-ubyte`, `...idx3-ubyte` or `.idx`, perhaps `.gz`."""
    name = path.name.lower().removesuffix(".gz")
    return name.endswith(("-ubyte", ".idx"))


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _header(path: Path, file: IO[bytes] | None = None) -> tuple[np.dtype[Any], list[int]]:
    """Read the dtype and the sizes from the beginning of `file`, or of the file at `path`."""
    if file is None:
        with _opened(path) as opened:
            return _header(path, opened)
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES:
        raise DataError(f"{path}: begins with {magic.hex(' ') or 'nothing'}; expected 00 00, a dtype and a rank of idx")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path}: ends in its header; expected {magic[3]} sizes")
    return np.dtype(_IDX_DTYPES[magic[2]]), np.frombuffer(sizes, ">u4").tolist()


def _header_bytes(sizes: list[int]) -> int:
    return 4 + 4 * len(sizes)


def _refuse_other_size(path: Path, expected: int) -> None:
    """Raise DataError if the file has not the bytes that its header announces, as far as its size can tell."""
    size = path.stat().st_size
    if path.suffix.lower() == ".gz":
        if expected > size * _LARGEST_DEFLATION:
            raise DataError(f"{path}: {size} bytes, packed; its header says {expected}: it is cut short")
    elif size != expected:
        raise DataError(f"{path}: {size} bytes; its header says {expected}")


def _labels_of(path: Path) -> Path | None:
    """Return the file of labels that lies beside the images, packed or not."""
    name = path.name.replace("images", "labels").replace("idx3", "idx1").replace("idx4", "idx1")
    if "images" not in path.name:
        return None
    plain = name.removesuffix(".gz")
    return next((beside for each in (name, plain, f"{plain}.gz") if (beside := path.with_name(each)).is_file()), None)


def _read_labels(path: Path, count: int, images: Path) -> NDArray[Any]:
    try:
        with _opened(path) as file:
            dtype, sizes = _header(path, file)
            if sizes != [count]:
                raise DataError(f"{path}: labels of shape {sizes}; {images} has {count} images")
            content = file.read(count * dtype.itemsize)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {first_line(error)}") from None
    if len(content) < count * dtype.itemsize:
        raise DataError(f"{path}: ends after {len(content) // dtype.itemsize} labels; its header says {count}")
    return np.frombuffer(content, dtype).astype(dtype.newbyteorder("="))


@dataclass(frozen=True)
class ImageFolder:
    """Every image below a folder, by path; all of one size and one kind, grey or RGB.

    columns: `file`, the path below the folder, and where there are subfolders `label`, the subfolder's name (None for
    what lies beside them).
    """

    folder: Path
    files: tuple[Path, ...]
    shape: Shape

    @classmethod
    def open(cls, folder: Path, files: list[Path]) -> Self:
        """Look at the first of `files`; raises DataError if it can't be read, MissingExtraError without Pillow."""
        first, *_ = files
        channels, height, width = _read(first).shape
        return cls(folder, tuple(files), (channels, height, width))

    @property
    def columns(self) -> Mapping[str, Any]:
        """The files' paths below the folder, and the subfolders' names."""
        below = [file.relative_to(self.folder) for file in self.files]
        labels = [path.parent.as_posix() if len(path.parts) > 1 else None for path in below]
        columns: dict[str, Any] = {"file": [path.as_posix() for path in below]}
        return columns | ({"label": labels} if any(labels) else {})

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, rows: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the images in order; raises DataError, naming the file, for one of another size or kind."""
        for start in range(0, len(self.files), rows):
            files = self.files[start : start + rows]
            batch = np.empty((len(files), *self.shape), np.uint8)
            for position, file in enumerate(files):
                image = _read(file)
                if image.shape != self.shape:
                    raise DataError(
                        f"{file}: {list(image.shape)}; expected {list(self.shape)} (channels, height, width), as "
                        f"{self.files[0].relative_to(self.folder).as_posix()} has"
                    )
                batch[position] = image
            yield batch


def images_below(folder: Path) -> list[Path]:
    """Return the files below `folder` that are images by their suffixes, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _read(file: Path) -> NDArray[np.uint8]:
    """Return an image, [channels, height, width]: one channel for grey, three for RGB."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise MissingExtraError("a folder of images takes Pillow: pip install pillow") from None
    try:
        with Image.open(file) as image:
            mode = image.mode
            plain = {"1": "L", "P": "RGBA" if "transparency" in image.info else "RGB"}.get(mode, mode)
            array = np.asarray(image if plain == mode else image.convert(plain))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{file}: can't be read as an image: {first_line(error)}") from None
    planes = array[:, :, None] if array.ndim == 2 else array  # (height, width, channels)
    if plain in ("LA", "RGBA") and (planes[..., -1] == _OPAQUE).all():
        planes, plain = planes[..., :-1], plain[:-1]
    if plain not in ("L", "RGB"):
        raise DataError(f"{file}: an image of mode {mode}; expected grey or RGB, of 8 bits and opaque")
    return planes.transpose(2, 0, 1)
