"""NumPy arrays on the wire."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from vaeserve.errors import InvalidInputError, OutOfRangeError
from vaeserve.tensors import DTYPES, from_tensor, to_tensor
from vaeserve.v1 import vae_pb2 as pb

ARRAYS = st.sampled_from(list(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
)


@given(ARRAYS)
def test_numbers_come_back_with_the_same_bits(array: NDArray[Any]) -> None:
    """An array of every dtype comes back from the wire bit by bit, in shape and dtype."""
    back = from_tensor(pb.Tensor.FromString(to_tensor(array).SerializeToString()))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


@given(hnp.arrays(np.dtype(object), hnp.array_shapes(max_dims=2), elements=st.text(max_size=5)))
def test_strings_come_back(array: NDArray[Any]) -> None:
    """An array of strings comes back from the wire."""
    assert (from_tensor(to_tensor(array)) == array).all()


def test_big_endian_and_strided_arrays_arrive_as_they_read() -> None:
    """What matters is an array's values, not how they lie in memory."""
    array = np.arange(12, dtype=">f4").reshape(3, 4)[:, ::2]
    assert from_tensor(to_tensor(array)).tolist() == array.tolist()


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (pb.Tensor(dtype=pb.FLOAT32, shape=[2, 3], data=b"\0" * 20), "20 bytes of data .* takes 24 bytes"),
        (pb.Tensor(dtype=pb.FLOAT32, data=b"\0" * 4), "one dimension or more"),
        (pb.Tensor(dtype=pb.FLOAT32, shape=[-1, 3]), "none negative"),
        (pb.Tensor(dtype=pb.FLOAT32, shape=[2**62, 2**62]), "0 bytes of data"),
        (pb.Tensor(dtype=pb.FLOAT32, shape=[2**62, 0]), "expected a smaller"),
        (pb.Tensor(dtype=pb.UINT8, shape=[1] * 17, data=b"a"), "17 dimensions; expected 16 at most"),
        # Multiplied out, this took minutes, and then more digits than Python would print.
        (pb.Tensor(dtype=pb.UINT8, shape=[2**63 - 1] * 250_000), "250000 dimensions; expected 16 at most"),
        (pb.Tensor(dtype=99, shape=[1], data=b"\0"), "dtype 99; expected FLOAT32"),  # type: ignore[arg-type]
        (pb.Tensor(shape=[1], data=b"\0"), "DATA_TYPE_UNSPECIFIED; expected FLOAT32"),
        (pb.Tensor(dtype=pb.STRING, shape=[2], strings=["a"]), "1 strings .* takes 2 strings"),
        (pb.Tensor(dtype=pb.UINT8, shape=[1], data=b"\0", strings=["a"]), "and 1 strings"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(tensor: pb.Tensor, message: str) -> None:
    """A tensor whose parts don't agree is refused by name, with what was expected."""
    with pytest.raises(InvalidInputError, match=message) as refusal:
        from_tensor(tensor, "inputs[0]")
    assert str(refusal.value).startswith("inputs[0]: ")


@pytest.mark.parametrize(
    "tensor", [pb.Tensor(dtype=pb.STRING, shape=[3, 2], strings=["a"] * 6), pb.Tensor(dtype=pb.INT64, shape=[6, 2**40])]
)
def test_more_elements_than_may_be_are_refused(tensor: pb.Tensor) -> None:
    """A shape of more elements than the limit is refused for that, whatever there is of them; at the limit it isn't."""
    with pytest.raises(OutOfRangeError, match=r"latents: shape \[.*\], \d+ elements; the service takes 5 in a tensor"):
        from_tensor(tensor, "latents", most_elements=5)
    assert from_tensor(to_tensor(np.zeros((5, 1))), most_elements=5).shape == (5, 1)


def test_a_dtype_the_wire_does_not_know_is_refused() -> None:
    """Complex numbers and mixed objects are refused before they are sent."""
    with pytest.raises(InvalidInputError, match="complex128; expected float32"):
        to_tensor(np.zeros(2, complex))
    with pytest.raises(InvalidInputError, match="entry 1 is a NoneType"):
        to_tensor(np.array(["a", None], dtype=object))
