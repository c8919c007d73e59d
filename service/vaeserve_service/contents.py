"""NumPy arrays to and from the tensors of the Open Inference Protocol, whose contents are typed or raw."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import InvalidInputError
from vaeserve.tensors import checked_shape, shaped
from vaeserve_service.oip import grpc_service_pb2 as pb
from vaeserve_service.requests import Arrays

# What raw contents hold; BYTES are lengths and bytes, and BF16 is the upper half of FP32.
_RAW: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("u1"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
# The field of each datatype's typed contents, and what that holds.
_TYPED: dict[str, tuple[str, np.dtype[Any]]] = {
    "BOOL": ("bool_contents", np.dtype("u1")),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), ("uint_contents", np.dtype("u4"))),
    "UINT64": ("uint64_contents", np.dtype("u8")),
    **dict.fromkeys(("INT8", "INT16", "INT32"), ("int_contents", np.dtype("i4"))),
    "INT64": ("int64_contents", np.dtype("i8")),
    "FP32": ("fp32_contents", np.dtype("f4")),
    "FP64": ("fp64_contents", np.dtype("f8")),
    "BYTES": ("bytes_contents", np.dtype(object)),
}
_DATATYPES = {dtype: datatype for datatype, dtype in _RAW.items() if datatype not in ("BOOL", "BF16")} | {
    np.dtype("?"): "BOOL",
    np.dtype(object): "BYTES",
}
_KNOWN = ", ".join((*_RAW, "BYTES"))
# The length before each element of BYTES.
_LENGTH = 4


def read_inputs(request: pb.ModelInferRequest, *, most_elements: int) -> Arrays:
    """Return a request's inputs by name; BYTES as text, BF16 in single precision.

    Raises InvalidInputError, naming the input, for contents that contradict its datatype and shape; OutOfRangeError for
    more than `most_elements` of them, before there is any memory for them.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInputError(
            f"raw_input_contents: {len(raw)} for {len(request.inputs)} inputs; expected one for each"
        )
    inputs: Arrays = {}
    for position, tensor in enumerate(request.inputs):
        where = f"inputs[{position}]"
        if tensor.name in inputs:
            raise InvalidInputError(f"{where}: {tensor.name!r} is there twice; expected each once")
        shape, count = checked_shape(tensor.shape, where, most_elements=most_elements)
        if tensor.datatype not in _RAW and tensor.datatype != "BYTES":
            raise InvalidInputError(f"{where}: datatype {tensor.datatype!r}; expected {_KNOWN}")
        if not raw:
            flat = _typed(tensor, count, where)
        elif tensor.HasField("contents"):
            raise InvalidInputError(f"{where}: contents beside raw_input_contents; expected one or the other")
        else:
            flat = _raw(raw[position], tensor.datatype, count, where)
        inputs[tensor.name] = shaped(flat, shape, where)
    return inputs


def _raw(content: bytes, datatype: str, count: int, where: str) -> NDArray[Any]:
    """Return the `count` elements that raw contents hold."""
    if datatype == "BYTES":
        return _text(_elements(content, count, where), count, where)
    dtype = _RAW[datatype]
    if len(content) != count * dtype.itemsize:
        raise InvalidInputError(
            f"{where}: {len(content)} bytes of raw contents; {count} of {datatype} take {count * dtype.itemsize}"
        )
    array = np.frombuffer(content, dtype)
    if datatype == "BOOL":
        return array.astype(np.bool_)
    if datatype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def _elements(content: bytes, count: int, where: str) -> Iterator[bytes]:
    """Yield the `count` elements of BYTES."""
    start = 0
    for position in range(count):
        length = int.from_bytes(content[start : start + _LENGTH], "little")
        end = start + _LENGTH + length
        if end > len(content):
            raise InvalidInputError(
                f"{where}: element {position} of {count} goes past the {len(content)} bytes of raw contents; expected "
                "each after its length in 4 bytes, little-endian"
            )
        yield content[start + _LENGTH : end]
        start = end
    if start < len(content):
        raise InvalidInputError(
            f"{where}: {len(content)} bytes of raw contents; the {count} elements of its shape take {start}"
        )


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, count: int, where: str) -> NDArray[Any]:
    """Return the `count` elements that typed contents hold."""
    if tensor.datatype not in _TYPED:
        raise InvalidInputError(f"{where}: contents of {tensor.datatype}; expected them in raw_input_contents")
    field, dtype = _TYPED[tensor.datatype]
    given = {each.name: len(values) for each, values in tensor.contents.ListFields()}
    if given.pop(field, 0) != count or given:
        said = ", ".join(f"{len(values)} {each.name}" for each, values in tensor.contents.ListFields())
        raise InvalidInputError(
            f"{where}: {said or 'no contents'}; {tensor.datatype} of its shape takes {count} {field}"
        )
    values = getattr(tensor.contents, field)
    if tensor.datatype == "BYTES":
        return _text(iter(values), count, where)
    array: NDArray[Any] = np.fromiter(values, dtype, count)
    return array.astype(np.bool_) if tensor.datatype == "BOOL" else _narrowed(array, tensor.datatype, where)


def _narrowed(array: NDArray[Any], datatype: str, where: str) -> NDArray[Any]:
    """Return integers that came in a wider field as what their datatype says."""
    narrow = _RAW[datatype]
    if array.dtype.kind in "iu" and array.size and array.dtype != narrow:
        limits = np.iinfo(narrow)
        for value in (array.min(), array.max()):
            if not limits.min <= value <= limits.max:
                raise InvalidInputError(f"{where}: {value}; {datatype} goes from {limits.min} to {limits.max}")
    return array.astype(narrow, copy=False)


def _text(elements: Iterator[bytes], count: int, where: str) -> NDArray[Any]:
    array = np.empty(count, object)
    for position, element in enumerate(elements):
        try:
            array[position] = element.decode()
        except UnicodeDecodeError:
            raise InvalidInputError(f"{where}: element {position} is {element[:20]!r}; expected UTF-8") from None
    return array


def add_output(response: pb.ModelInferResponse, name: str, array: NDArray[Any]) -> None:
    """Add an array to a response, raw, as Triton's clients read it."""
    if array.dtype.kind in "UO":
        datatype, content = "BYTES", b"".join(map(_with_length, array.ravel().tolist()))
    else:
        little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
        datatype, content = _DATATYPES[little_endian.dtype], little_endian.tobytes()
    response.outputs.add(name=name, datatype=datatype, shape=array.shape)
    response.raw_output_contents.append(content)


def _with_length(text: str) -> bytes:
    content = text.encode()
    return len(content).to_bytes(_LENGTH, "little") + content
