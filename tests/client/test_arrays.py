"""NumPy's files from bytes that nobody vouches for."""

import contextlib
import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vaeserve.arrays import LARGEST_UNPACKED, read_array, read_arrays

ARRAYS: dict[str, NDArray[Any]] = {
    "numbers": np.arange(6, dtype=np.float32).reshape(2, 3),
    "columns first": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "words": np.array([["a", "bcd"], ["", "é"]]),
    "pixels": np.zeros((2, 1, 2, 2), np.uint8),
    "none": np.empty((0, 3), np.float32),
    "one": np.array(3, np.float32),
}


def npy(array: NDArray[Any]) -> bytes:
    """Return an array as a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return files as an archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def header(text: str, content: bytes = b"") -> bytes:
    """Return a `.npy` file with this header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + content


def claiming(archive: bytes, size: int) -> bytes:
    """Return an archive whose directory claims that its first file unpacks to `size` bytes."""
    entry = archive.index(b"PK\x01\x02")
    return archive[: entry + 24] + struct.pack("<I", size) + archive[entry + 28 :]


@pytest.mark.parametrize("name", ARRAYS)
def test_what_numpy_writes_reads_back(name: str) -> None:
    """Arrays of numbers, truths and strings of any shape and order come back as they were."""
    array = ARRAYS[name]
    for read in (read_array(npy(array)), read_arrays(npz({"x": npy(array)}))["x"]):
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "EOF|magic|not enough"),
        (b"\x93NUMPY\x09\x00", "version"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}\n"), "shape .* in 0 bytes"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}\n", b"x" * 24), "shape"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}\n", b"x" * 9), "in 9 bytes; expected 8"),
        (
            header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n", b"x" * 8),
            "dtype object; expected numbers",
        ),
        (header("{'descr': '<U0', 'fortran_order': False, 'shape': (9999999999,)}\n"), "dtype <U0; expected numbers"),
        (header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}\n", b"x" * 4), "expected numbers"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 5000 + "\n"), "."),
        (header("[" * 9000), "."),
        (header("x" * 20000), "."),
    ],
)
def test_hostile_arrays_are_refused(content: bytes, message: str) -> None:
    """A header that claims what isn't there, or is none, is refused before anything is made of it."""
    with pytest.raises(ValueError, match=message):
        read_array(content)


def test_an_archive_that_unpacks_to_gigabytes_is_refused() -> None:
    """An archive is refused by the size that it claims, and is never unpacked any further than it claims."""
    small = npz({"x": npy(ARRAYS["numbers"])})
    with pytest.raises(ValueError, match=f"1 arrays of {LARGEST_UNPACKED + 1} bytes unpacked"):
        read_arrays(claiming(small, LARGEST_UNPACKED + 1))
    zeros = npz({"x": npy(np.zeros(10**6, np.uint8))})
    with pytest.raises(ValueError, match="CRC"):
        read_arrays(claiming(zeros, 100))
    with pytest.raises(ValueError, match="257 arrays"):
        read_arrays(npz({f"x{index}": b"" for index in range(257)}))
    with pytest.raises(ValueError, match="compression method 14; expected deflate or none"):
        read_arrays(npz({"x": b""}, zipfile.ZIP_LZMA))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_bytes_are_an_array_or_refused(data: st.DataObject) -> None:
    """Whatever is done to the bytes of a file, it reads as arrays of plain values, or is a ValueError."""
    whole = data.draw(st.sampled_from([npz({"x": npy(ARRAYS["words"])}), npy(ARRAYS["numbers"])]))
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for read in (read_array, read_arrays):
        for part in (bytes(content), cut):
            with contextlib.suppress(ValueError):
                arrays = read(part)
                kinds = {array.dtype.kind for array in (arrays.values() if isinstance(arrays, dict) else [arrays])}
                assert kinds <= set("biufU")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    """An object that would run code where it is unpickled runs none."""

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([Touch()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="dtype object"):
        read_array(buffer.getvalue())
    assert not (tmp_path / "ran").exists()
