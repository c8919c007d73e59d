"""NumPy arrays to and from the wire's `Tensor`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import InvalidInputError, OutOfRangeError
from vaeserve.v1 import vae_pb2 as pb

DTYPES: dict[int, np.dtype[Any]] = {
    pb.FLOAT32: np.dtype("<f4"),
    pb.FLOAT16: np.dtype("<f2"),
    pb.FLOAT64: np.dtype("<f8"),
    pb.INT64: np.dtype("<i8"),
    pb.INT32: np.dtype("<i4"),
    pb.UINT8: np.dtype("u1"),
    pb.BOOL: np.dtype("?"),
}
_ENUMS: dict[np.dtype[Any], Any] = {dtype: enum for enum, dtype in DTYPES.items()}

Arrays = Mapping[str, NDArray[Any]]

# Far more than any model has. A hostile shape of a hundred thousand, multiplied out, takes seconds.
_MOST_DIMENSIONS = 16


def to_tensor(array: NDArray[Any], name: str = "") -> pb.Tensor:
    """Return `array` as a wire tensor.

    Raises InvalidInputError for a dtype that the wire has no word for.
    """
    if array.dtype.kind in "UOT":
        return pb.Tensor(name=name, dtype=pb.STRING, shape=array.shape, strings=_strings(array, name))
    enum = _ENUMS.get(array.dtype.newbyteorder("<"))
    if enum is None:
        raise InvalidInputError(
            f"{name or 'rows'}: dtype {array.dtype}; expected float32, float16, float64, int64, int32, uint8, "
            "bool or strings"
        )
    little_endian = np.ascontiguousarray(array, dtype=DTYPES[enum])
    return pb.Tensor(name=name, dtype=enum, shape=array.shape, data=little_endian.tobytes())


def _strings(array: NDArray[Any], name: str) -> list[str]:
    flat = array.ravel().tolist()
    for position, value in enumerate(flat):
        if not isinstance(value, str):
            raise InvalidInputError(
                f"{name or 'rows'}: entry {position} is a {type(value).__name__}, {value!r}; expected numbers, or "
                "strings alone"
            )
    return flat


def to_tensors(arrays: Arrays) -> list[pb.Tensor]:
    """Return the named `arrays` as wire tensors."""
    return [to_tensor(array, name) for name, array in arrays.items()]


def from_tensor(tensor: pb.Tensor, where: str = "tensor", *, most_elements: int | None = None) -> NDArray[Any]:
    """Return the wire tensor's array, read-only and without a copy where it holds numbers.

    Raises InvalidInputError, naming `where`, if its parts contradict each other; OutOfRangeError for more than
    `most_elements` of them, before there is any memory for them.
    """
    shape, count = checked_shape(tensor.shape, where, most_elements=most_elements)
    data = tensor.data  # protobuf copies it for each look
    if tensor.dtype == pb.STRING:
        if len(tensor.strings) != count or data:
            raise InvalidInputError(
                f"{where}: {len(tensor.strings)} strings and {len(data)} bytes of data; "
                f"shape {list(shape)} takes {count} strings and no data"
            )
        return shaped(np.array(tensor.strings, dtype=object), shape, where)
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidInputError(f"{where}: dtype {_name(tensor.dtype)}; expected {', '.join(_known())}")
    if len(data) != count * dtype.itemsize or tensor.strings:
        raise InvalidInputError(
            f"{where}: {len(data)} bytes of data and {len(tensor.strings)} strings; {_name(tensor.dtype)} of "
            f"shape {list(shape)} takes {count * dtype.itemsize} bytes and no strings"
        )
    return shaped(np.frombuffer(data, dtype=dtype), shape, where)


def from_tensors(tensors: Sequence[pb.Tensor]) -> dict[str, NDArray[Any]]:
    """Return the wire tensors' arrays by name."""
    return {tensor.name: from_tensor(tensor, tensor.name) for tensor in tensors}


def checked_shape(
    lengths: Sequence[int], where: str, *, most_elements: int | None = None
) -> tuple[tuple[int, ...], int]:
    """Return a shape from the wire, and how many elements it has; raises as `from_tensor` does."""
    if len(lengths) > _MOST_DIMENSIONS:
        raise InvalidInputError(f"{where}: {len(lengths)} dimensions; expected {_MOST_DIMENSIONS} at most")
    shape = tuple(lengths)
    if not shape or min(shape) < 0:
        raise InvalidInputError(f"{where}: shape {list(shape)}; expected one dimension or more, none negative")
    count = math.prod(shape)  # Python's integers, for a hostile shape overflows NumPy's
    if most_elements is not None and count > most_elements:
        raise OutOfRangeError(
            f"{where}: shape {list(shape)}, {count} elements; the service takes {most_elements} in a tensor at most"
        )
    return shape, count


def shaped(flat: NDArray[Any], shape: tuple[int, ...], where: str) -> NDArray[Any]:
    """Return an array in a shape of as many elements; raises InvalidInputError for one that NumPy doesn't have."""
    try:
        return flat.reshape(shape)
    except ValueError:  # a larger dimension than NumPy has
        raise InvalidInputError(f"{where}: shape {list(shape)}; expected a smaller") from None


def _name(dtype: int) -> str:
    return pb.DataType.Name(dtype) if dtype in pb.DataType.values() else str(dtype)  # type: ignore[arg-type]


def _known() -> list[str]:
    return [_name(enum) for enum in (*DTYPES, pb.STRING)]
