"""Tensors of the Open Inference Protocol to arrays and back."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from vaeserve.errors import CallerError, InvalidInputError, OutOfRangeError
from vaeserve_service.contents import add_output, read_inputs
from vaeserve_service.oip import grpc_service_pb2 as pb

TYPED = {
    "bool": ("BOOL", "bool_contents"),
    "int8": ("INT8", "int_contents"),
    "int16": ("INT16", "int_contents"),
    "int32": ("INT32", "int_contents"),
    "int64": ("INT64", "int64_contents"),
    "uint8": ("UINT8", "uint_contents"),
    "uint16": ("UINT16", "uint_contents"),
    "uint32": ("UINT32", "uint_contents"),
    "uint64": ("UINT64", "uint64_contents"),
    "float32": ("FP32", "fp32_contents"),
    "float64": ("FP64", "fp64_contents"),
}
SHAPES = hnp.array_shapes(max_dims=4, min_side=0, max_side=4)
MOST = 100


def numbers(*dtypes: str) -> st.SearchStrategy[NDArray[Any]]:
    """Draw arrays of any shape."""
    return st.sampled_from(dtypes).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES))


TEXTS = SHAPES.flatmap(lambda shape: hnp.arrays(object, shape, elements=st.text(max_size=5)))


def request(datatype: str, shape: Sequence[int], *, raw: Sequence[bytes] = (), **contents: Any) -> pb.ModelInferRequest:
    """Return a request of one input."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)
    if contents:
        tensor.contents.CopyFrom(pb.InferTensorContents(**contents))
    return pb.ModelInferRequest(inputs=[tensor], raw_input_contents=raw)


def read(message: pb.ModelInferRequest) -> NDArray[Any]:
    """Return the input of a request."""
    return read_inputs(message, most_elements=MOST + 4**4)["x"]


@settings(deadline=None)
@given(numbers(*TYPED, "float16") | TEXTS)
def test_what_is_answered_can_be_sent_back(array: NDArray[Any]) -> None:
    """An array of any dtype and shape, written raw as an output and read as an input, is itself."""
    response = pb.ModelInferResponse()
    add_output(response, "x", array)
    (output,), (content,) = response.outputs, response.raw_output_contents
    again = read(request(output.datatype, output.shape, raw=[content]))
    assert (again.shape, again.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(again, array)


@settings(deadline=None)
@given(numbers(*TYPED) | TEXTS)
def test_typed_contents_are_the_same_array(array: NDArray[Any]) -> None:
    """An array in the field of its datatype is itself, to the bit."""
    datatype, field = TYPED.get(array.dtype.name, ("BYTES", "bytes_contents"))
    flat = array.ravel().tolist()
    values = [text.encode() for text in flat] if datatype == "BYTES" else flat
    again = read(request(datatype, array.shape, **{field: values}))
    assert (again.shape, again.dtype) == (array.shape, array.dtype)
    np.testing.assert_array_equal(again, array)


def test_brain_floats_are_read() -> None:
    """BF16, which NumPy doesn't have, comes as the single precision that it is the upper half of."""
    values = np.array([1.0, -2.5, np.nan, np.inf], np.float32)
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    np.testing.assert_array_equal(read(request("BF16", [2, 2], raw=[halves.tobytes()])), values.reshape(2, 2))


ROW = np.zeros(2, np.float32).tobytes()


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (request("FP32", [2], raw=[ROW[:-1]]), "inputs[0]: 7 bytes of raw contents; 2 of FP32 take 8"),
        (request("FP32", [2], raw=[ROW * 2]), "16 bytes of raw contents"),
        (request("FP32", [2], raw=[b""]), "0 bytes of raw contents"),
        (request("FP32", [2], raw=[ROW], fp32_contents=[0, 0]), "contents beside raw_input_contents"),
        (request("FP32", [2], raw=[ROW, ROW]), "raw_input_contents: 2 for 1 inputs; expected one for each"),
        (request("FP32", [2]), "inputs[0]: no contents; FP32 of its shape takes 2 fp32_contents"),
        (request("FP32", [2], fp32_contents=[0]), "1 fp32_contents; FP32 of its shape takes 2"),
        (request("FP32", [2], fp64_contents=[0, 0]), "2 fp64_contents; FP32"),
        (request("FP32", [2], fp32_contents=[0, 0], int_contents=[1]), "1 int_contents, 2 fp32_contents"),
        (request("FP32", [-1, 2], raw=[ROW]), "shape [-1, 2]; expected one dimension or more, none negative"),
        (request("FP32", [], raw=[ROW]), "shape []"),
        (request("FP32", [1] * 17, raw=[ROW]), "17 dimensions; expected 16 at most"),
        (request("FP32", [2**62, 0], raw=[b""]), "expected a smaller"),
        (request("FP16", [2], fp32_contents=[0, 0]), "contents of FP16; expected them in raw_input_contents"),
        (request("INT8", [1], int_contents=[128]), "inputs[0]: 128; INT8 goes from -128 to 127"),
        (request("UINT16", [1], uint_contents=[65536]), "65536; UINT16 goes from 0 to 65535"),
        (request("FLOAT32", [2], raw=[ROW]), "datatype 'FLOAT32'; expected BOOL, UINT8"),
        (request("BYTES", [2], raw=[b"\1\0\0\0a\2\0\0\0b"]), "element 1 of 2 goes past the 10 bytes"),
        (request("BYTES", [2], raw=[b"\1\0\0\0a\1\0"]), "element 1 of 2 goes past the 7 bytes"),
        (request("BYTES", [1], raw=[b"\1\0\0\0ab"]), "6 bytes of raw contents; the 1 elements of its shape take 5"),
        (request("BYTES", [1], raw=[b"\xff\xff\xff\xff"]), "element 0 of 1 goes past"),
        (request("BYTES", [1], bytes_contents=[b"\xff"]), "element 0 is b'\\xff'; expected UTF-8"),
    ],
)
def test_contents_that_contradict_their_shape_are_refused(message: pb.ModelInferRequest, said: str) -> None:
    """Whatever doesn't fit its datatype and shape is the caller's fault, and named."""
    with pytest.raises(InvalidInputError) as refusal:
        read(message)
    assert said in str(refusal.value)


def test_an_input_is_there_once() -> None:
    """Two inputs of one name are refused, or one of them would be lost."""
    message = request("FP32", [2], raw=[ROW, ROW])
    message.inputs.append(message.inputs[0])
    with pytest.raises(InvalidInputError, match=r"inputs\[1\]: 'x' is there twice"):
        read(message)


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_the_limit_holds_before_there_is_memory(datatype: str) -> None:
    """A shape of more elements than a tensor may have is refused, whatever its contents are."""
    with pytest.raises(OutOfRangeError, match="takes 356 in a tensor at most"):
        read(request(datatype, [2**40, 2], raw=[b""]))


LENGTHS = st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**62, 2**63 - 1, -(2**63)]), max_size=5)
ANY_CONTENTS = st.fixed_dictionaries(
    {},
    optional={
        "fp32_contents": st.lists(st.floats(width=32), max_size=6),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=6),
        "bytes_contents": st.lists(st.binary(max_size=4), max_size=6),
        "bool_contents": st.lists(st.booleans(), max_size=6),
    },
)


@settings(deadline=None)
@given(
    st.sampled_from(["FP32", "BYTES", "INT8", "UINT16", "BOOL", "FP16", "BF16", "", "STRING"]),
    LENGTHS,
    st.lists(st.binary(max_size=24), max_size=2),
    ANY_CONTENTS,
)
def test_whatever_comes_is_an_array_or_the_callers_fault(
    datatype: str, shape: list[int], raw: list[bytes], contents: dict[str, Any]
) -> None:
    """No message makes anything but an array of its shape or an error that is the caller's."""
    with contextlib.suppress(CallerError):
        assert list(read(request(datatype, shape, raw=raw, **contents)).shape) == shape
