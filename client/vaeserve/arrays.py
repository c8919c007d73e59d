"""NumPy's files, read from bytes that nobody vouches for: no pickles, and no memory before it is known to be needed."""

import io
import math
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

# What the arrays of an archive may unpack to, all together, and how many they may be.
LARGEST_UNPACKED = 2**30
MOST_ARRAYS = 256

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_KINDS = frozenset("biufU")
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


def read_array(content: bytes) -> NDArray[Any]:
    """Return the array of a `.npy` file: numbers, truths or strings.

    Raises ValueError, saying why, for anything else: above all for a shape that the bytes don't have.
    """
    file = io.BytesIO(content)
    shape, fortran_order, dtype = _header(file)
    if dtype.kind not in _KINDS or not dtype.itemsize:
        raise ValueError(f"dtype {dtype}; expected numbers, truths or strings")
    count, there = math.prod(shape), len(content) - file.tell()
    if min(shape, default=0) < 0 or count * dtype.itemsize != there:
        raise ValueError(f"shape {list(shape)} of {dtype} in {there} bytes; expected {count * dtype.itemsize}")
    array = np.frombuffer(content, dtype, offset=file.tell())
    return array.reshape(shape, order="F" if fortran_order else "C").copy()


def read_arrays(content: bytes) -> dict[str, NDArray[Any]]:
    """Return the arrays of a `.npz` file by name; raises ValueError as `read_array` does."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _refuse_bomb(entries)
            return {
                entry.filename.removesuffix(".npy"): read_array(archive.open(entry).read(entry.file_size + 1))
                for entry in entries
            }
    except ValueError:
        raise
    except Exception as error:  # zipfile and zlib have no common error for bytes that are none of theirs
        raise ValueError(str(error) or type(error).__name__) from None


def _header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the format; expected 1.0 or 2.0")
        return _HEADERS[version](file)
    except Exception as error:  # Python's parser reads the header, and has many ways to fail
        raise ValueError(str(error).partition("\n")[0] or type(error).__name__) from None


def _refuse_bomb(entries: list[zipfile.ZipInfo]) -> None:
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > LARGEST_UNPACKED or len(entries) > MOST_ARRAYS:
        raise ValueError(
            f"{len(entries)} arrays of {unpacked} bytes unpacked; expected at most {MOST_ARRAYS} of {LARGEST_UNPACKED}"
        )
    for entry in entries:
        if entry.compress_type not in _METHODS:
            raise ValueError(f"{entry.filename}: compression method {entry.compress_type}; expected deflate or none")
