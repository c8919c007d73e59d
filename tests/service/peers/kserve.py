"""KServe's own client, as it comes from PyPI, against a service: run by test_open_inference.py in a process of its own.

KServe is a server first. Its client is loaded without the package's `__init__`, which would load that server and
Kubernetes' client with it; what it consists of is untouched.
"""

import importlib.util
import os
import sys
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

_found = importlib.util.find_spec("kserve")
assert _found is not None
assert _found.submodule_search_locations
_package = types.ModuleType("kserve")
_package.__path__ = list(_found.submodule_search_locations)
sys.modules["kserve"] = _package

from kserve.inference_client import InferenceGRPCClient  # noqa: E402
from kserve.protocol.grpc.grpc_predict_v2_pb2 import ModelMetadataRequest, ServerMetadataRequest  # noqa: E402
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub  # noqa: E402
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput  # noqa: E402

TARGET = os.environ["PEER_TARGET"]
GIVEN = Path(os.environ["PEER_GIVEN"])
DATATYPES = {"float32": "FP32", "uint8": "UINT8", "object": "BYTES"}


def given(name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays that a call of our own client took or gave."""
    with np.load(GIVEN / f"{name}.npz", allow_pickle=True) as arrays:
        return dict(arrays)


def request(name: str, arrays: dict[str, NDArray[Any]], *, binary: bool, **asked: Any) -> Any:
    """Return a request as KServe makes it: raw or typed."""
    inputs = []
    for key, array in arrays.items():
        inputs.append(InferInput(key, list(array.shape), DATATYPES[array.dtype.name]))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return InferRequest(name, inputs, **asked)


def outputs(response: Any) -> dict[str, NDArray[Any]]:
    """Return the arrays of a response, text as text."""
    arrays = {output.name: output.as_numpy() for output in response.outputs}
    return {
        name: np.array([text.decode() for text in array.flat], object).reshape(array.shape)
        if array.dtype == object
        else array
        for name, array in arrays.items()
    }


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    """A client of the service."""
    async with InferenceGRPCClient(TARGET) as opened:
        yield opened


async def test_everything_is_live_and_ready(client: Any) -> None:
    """The server and each operation are; what isn't there isn't."""
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert await client.is_model_ready("table7")
    assert await client.is_model_ready("mixed.encode")
    assert not await client.is_model_ready("fraud")


@pytest.mark.parametrize("binary", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize("name", ["table7", "mixed", "image", "table7.encode", "mixed.reconstruct", "table7.decode"])
async def test_answers_have_the_bits_of_our_own(client: Any, name: str, binary: bool) -> None:
    """Rows sent raw or typed are answered with what our own client gets."""
    response = await client.infer(request(name, given(f"{name}.in"), binary=binary, request_id="7"))
    assert (response.model_name, response.model_version, response.id) == (name, "1", "7")
    got, expected = outputs(response), given(f"{name}.out")
    assert set(got) == set(expected)
    for key, array in expected.items():
        if array.dtype == object:
            assert got[key].tolist() == array.tolist()
        else:
            assert got[key].tobytes() == array.astype(got[key].dtype).tobytes(), key


async def test_a_rate_may_come_as_text(client: Any) -> None:
    """For KServe's client has no parameters with a fraction."""
    asked = {"parameters": {"false_positive_rate": "0.5"}, "request_outputs": [RequestedOutput("anomalous")]}
    response = await client.infer(request("mixed", given("mixed.in"), binary=True, **asked))
    assert list(outputs(response)) == ["anomalous"]
    assert outputs(response)["anomalous"].tobytes() == given("mixed.rate")["anomalous"].tobytes()


async def test_what_is_wrong_is_said(client: Any) -> None:
    """A fault has its code and its message."""
    with pytest.raises(grpc.RpcError) as refusal:
        await client.infer(request("mixed", given("mixed.in"), binary=True, parameters={"samples": 1}))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'samples'" in str(refusal.value.details())


async def test_its_descriptors_read_our_metadata() -> None:
    """Metadata by KServe's own messages, whose proto has fewer fields: the name and the signature."""
    async with grpc.aio.insecure_channel(TARGET) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert (await stub.ServerMetadata(ServerMetadataRequest())).name == "vaeserve"
        metadata = await stub.ModelMetadata(ModelMetadataRequest(name="table7"))
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs] == [
        ("numeric", "FP32", [-1, 7])
    ]
