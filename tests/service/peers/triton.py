"""Triton's own client, as it comes from PyPI, against a service: run by test_open_inference.py in a process of its own.

Two definitions of the package `inference` can't live in one.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf import descriptor_pb2
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

TARGET = os.environ["PEER_TARGET"]
# What our own client got, by model and operation, and the descriptors of our protos.
GIVEN = Path(os.environ["PEER_GIVEN"])
SCORES = ("score", "elbo", "log_likelihood", "kl", "p_value", "anomalous", "status")
SUFFIXES = ("", ".encode", ".decode", ".reconstruct")


def given(name: str) -> dict[str, NDArray[Any]]:
    """Return the arrays that a call of our own client took or gave."""
    with np.load(GIVEN / f"{name}.npz", allow_pickle=True) as arrays:
        return dict(arrays)


def tensors(arrays: dict[str, NDArray[Any]]) -> list[Any]:
    """Return arrays as a user of Triton gives them."""
    inputs = []
    for name, array in arrays.items():
        inputs.append(triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def outputs(result: Any) -> dict[str, NDArray[Any]]:
    """Return all arrays of a result, text as text."""
    arrays = {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
    return {name: _decoded(array) if array.dtype == object else array for name, array in arrays.items()}


def _decoded(array: NDArray[Any]) -> NDArray[Any]:
    return np.array([text.decode() for text in array.flat], object).reshape(array.shape)


def assert_same(got: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> None:
    """See that both have the same arrays, to the bit."""
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape
        if array.dtype == object:
            assert got[name].tolist() == array.tolist()
        else:
            assert got[name].tobytes() == array.astype(got[name].dtype).tobytes(), name


def refusal(call: Any) -> tuple[str, str]:
    """Return the status and the message of a call that is refused."""
    with pytest.raises(InferenceServerException) as error:
        call()
    return str(error.value.status()).removeprefix("StatusCode."), str(error.value.message())


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A client of the service."""
    with triton.InferenceServerClient(TARGET) as opened:
        yield opened


def test_everything_is_live_and_ready(client: Any) -> None:
    """The server, and each operation of each model, by version too; what isn't there isn't ready."""
    assert client.is_server_live()
    assert client.is_server_ready()
    for suffix in SUFFIXES:
        assert client.is_model_ready(f"table7{suffix}")
        assert client.is_model_ready(f"table7{suffix}", "1")
        assert not client.is_model_ready(f"table7{suffix}", "2")
    assert not client.is_model_ready("fraud")
    assert not client.is_model_ready("table7.train")


def test_metadata_is_the_signature(client: Any) -> None:
    """Inputs and outputs have the names, datatypes and shapes that calls take and give."""
    server = client.get_server_metadata()
    assert (server.name, "statistics" in server.extensions) == ("vaeserve", True)
    for name in ("table7", "mixed", "image"):
        for suffix in SUFFIXES:
            metadata = client.get_model_metadata(name + suffix)
            assert (metadata.name, list(metadata.versions)) == (name + suffix, ["1"])
            sent = given(f"{name}{suffix}.in")
            got = client.infer(name + suffix, tensors(sent)).get_response()
            assert {tensor.name for tensor in metadata.inputs} == set(sent)
            for tensor in metadata.inputs:
                assert tensor.datatype == np_to_triton_dtype(sent[tensor.name].dtype)
                assert list(tensor.shape) == [-1, *sent[tensor.name].shape[1:]]
            told = {tensor.name: (tensor.datatype, list(tensor.shape)[1:]) for tensor in metadata.outputs}
            for tensor in got.outputs:
                datatype, shape = told.pop(tensor.name)
                assert (datatype, shape) == (tensor.datatype, list(tensor.shape)[1:])
            assert set(told) == (set() if suffix else {"attribution_feature", "attribution_excess"})


def test_the_configuration_agrees_with_the_metadata(client: Any) -> None:
    """The same names, types and shapes, without the rows, and what perf_analyzer asks for."""
    types = {"FP32": "TYPE_FP32", "FP64": "TYPE_FP64", "INT32": "TYPE_INT32", "UINT8": "TYPE_UINT8"}
    types |= {"BOOL": "TYPE_BOOL", "BYTES": "TYPE_STRING"}
    for name in ("mixed", "image.reconstruct", "table7.encode", "table7.decode"):
        metadata, config = client.get_model_metadata(name), client.get_model_config(name).config
        assert config.name == name
        assert config.max_batch_size == 100_000
        assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
        assert config.dynamic_batching.priority_levels == 0
        assert config.dynamic_batching.default_queue_policy.allow_timeout_override
        assert not config.model_transaction_policy.decoupled
        assert int(config.parameters["latent_dim"].string_value) in (3, 5)
        assert json.loads(config.parameters["calibration"].string_value)["rows"] == 120
        for told, configured in ((metadata.inputs, config.input), (metadata.outputs, config.output)):
            for tensor, entry in zip(told, configured, strict=True):
                assert entry.name == tensor.name
                assert model_config_pb2.DataType.Name(entry.data_type) == types[tensor.datatype]
                shape = entry.reshape.shape if entry.HasField("reshape") else entry.dims
                assert list(shape) == list(tensor.shape)[1:]


@pytest.mark.parametrize("name", ["table7", "mixed", "image"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_answers_have_the_bits_of_our_own(client: Any, name: str, suffix: str) -> None:
    """What Triton's client reads is what ours does: numbers, missing ones, categories and pixels."""
    result = client.infer(name + suffix, tensors(given(f"{name}{suffix}.in")), request_id="7")
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == (name + suffix, "1", "7")
    assert_same(outputs(result), given(f"{name}{suffix}.out"))


def test_the_options_of_a_score_are_parameters(client: Any) -> None:
    """Samples, bound and seed, a rate, and the features that stand out, are those of our own client."""
    sent = tensors(given("mixed.in"))
    options = {"num_samples": 5, "bound": "iwae", "seed": 3, "top_features": 2}
    assert_same(outputs(client.infer("mixed", sent, parameters=options)), given("mixed.options"))
    assert_same(outputs(client.infer("mixed", sent, parameters={"false_positive_rate": 0.5})), given("mixed.rate"))


def test_outputs_come_as_they_are_asked_for(client: Any) -> None:
    """Only those, in their order; the features that stand out are none where none were asked for."""
    names = ["attribution_feature", "kl", "score"]
    result = client.infer("mixed", tensors(given("mixed.in")), outputs=list(map(triton.InferRequestedOutput, names)))
    assert [output.name for output in result.get_response().outputs] == names
    rows = len(given("mixed.in")["numeric"])
    assert result.as_numpy("attribution_feature").shape == (rows, 0)
    assert result.as_numpy("score").tobytes() == given("mixed.out")["score"].tobytes()


def test_other_numbers_are_taken_where_a_model_has_singles(client: Any) -> None:
    """Doubles and integers become singles, as for our own client; no rows give no rows."""
    rows = np.arange(14, dtype=np.float32).reshape(2, 7)
    expected = outputs(client.infer("table7", tensors({"numeric": rows})))
    for dtype in (np.float64, np.float16, np.int32, np.uint8):
        assert_same(outputs(client.infer("table7", tensors({"numeric": rows.astype(dtype)}))), expected)
    empty = outputs(client.infer("table7", tensors({"numeric": rows[:0]})))
    assert {name: len(array) for name, array in empty.items()} == dict.fromkeys(SCORES, 0)


def test_a_model_with_one_input_takes_it_without_a_name(client: Any) -> None:
    """As our own client may send it."""
    (rows,) = given("table7.in").values()
    assert_same(outputs(client.infer("table7", tensors({"": rows}))), given("table7.out"))


@pytest.mark.parametrize(
    ("name", "asked", "status", "said"),
    [
        ("fraud", {}, "NOT_FOUND", "model: 'fraud'; the service has"),
        ("table7.train", {}, "NOT_FOUND", "expected 'table7' alone or with .encode, .decode, .reconstruct"),
        ("table7", {"model_version": "9"}, "NOT_FOUND", "version: '9'; the service has 1"),
        ("", {}, "INVALID_ARGUMENT", "model name: empty; expected one of"),
        ("table7", {"inputs": {"x": np.zeros((1, 7), np.float32)}}, "INVALID_ARGUMENT", "the model takes numeric"),
        ("table7", {"inputs": {"numeric": np.zeros((1, 6), np.float32)}}, "INVALID_ARGUMENT", "6 columns"),
        ("table7", {"inputs": {}}, "INVALID_ARGUMENT", "inputs: none; the model takes numeric"),
        ("table7.decode", {}, "INVALID_ARGUMENT", "inputs: numeric; the model takes latents"),
        ("table7.decode", {"inputs": {"latents": np.full((1, 3), 1e9)}}, "OUT_OF_RANGE", "latents: not all of them"),
        ("table7", {"parameters": {"samples": 3}}, "INVALID_ARGUMENT", "parameters: 'samples'; expected one of bound"),
        ("table7", {"parameters": {"num_samples": 999}}, "OUT_OF_RANGE", "num_samples: 999; the model has 256"),
        ("table7", {"parameters": {"false_positive_rate": 1e-4}}, "INVALID_ARGUMENT", "120 calibration rows support"),
        ("table7.encode", {"parameters": {"seed": 3}}, "INVALID_ARGUMENT", "'seed'; expected one of timeout, priority"),
        ("table7", {"outputs": [triton.InferRequestedOutput("y")]}, "INVALID_ARGUMENT", "table7 has score, elbo"),
        (
            "table7",
            {"outputs": [triton.InferRequestedOutput("kl"), triton.InferRequestedOutput("kl")]},
            "INVALID_ARGUMENT",
            "outputs[1]: 'kl' is there twice",
        ),
        (
            "table7",
            {"outputs": [triton.InferRequestedOutput("kl", class_count=2)]},
            "INVALID_ARGUMENT",
            "outputs[0]: parameter 'classification'",
        ),
        (
            "table7",
            {"inputs": {"numeric": np.zeros((100_001, 7), np.uint8)}},
            "OUT_OF_RANGE",
            "rows: 100001 in a request; the service takes 100000 at most",
        ),
    ],
)
def test_what_is_wrong_is_said(client: Any, name: str, asked: dict[str, Any], status: str, said: str) -> None:
    """A fault in a request has its code, and a message that names it and what was expected."""
    asked = {"inputs": {"numeric": np.zeros((1, 7), np.float32)}} | asked
    asked["inputs"] = tensors(asked["inputs"])
    code, message = refusal(lambda: client.infer(name, **asked))
    assert (code, said in message) == (status, True), message


def test_what_is_not_offered_says_so(client: Any) -> None:
    """Shared memory is no part of the service: to register it is unimplemented, to use it a wrong argument."""
    assert refusal(client.get_system_shared_memory_status)[0] == "UNIMPLEMENTED"
    shared = triton.InferInput("numeric", [1, 7], "FP32")
    shared.set_shared_memory("region", 28)
    code, message = refusal(lambda: client.infer("table7", [shared]))
    assert (code, "'shared_memory_byte_size'" in message or "'shared_memory_region'" in message) == (
        "INVALID_ARGUMENT",
        True,
    )
    assert refusal(lambda: client.load_model("table7"))[0] == "UNIMPLEMENTED"
    assert refusal(lambda: client.unload_model("table7"))[0] == "UNIMPLEMENTED"


def test_a_sequence_a_priority_and_a_long_timeout_change_nothing(client: Any) -> None:
    """They are taken, as Triton does for a model that keeps no sequences and has no levels of priority."""
    asked: dict[str, Any] = {"sequence_id": 7, "sequence_start": True, "priority": 3, "timeout": 60_000_000}
    assert_same(outputs(client.infer("table7", tensors(given("table7.in")), **asked)), given("table7.out"))


def test_compressed_messages_are_read(client: Any) -> None:
    """Either of gRPC's compressions, as the client offers them."""
    for algorithm in ("gzip", "deflate"):
        result = client.infer("table7", tensors(given("table7.in")), compression_algorithm=algorithm)
        assert_same(outputs(result), given("table7.out"))


def test_statistics_rise_by_what_was_computed(client: Any) -> None:
    """An operation's requests, rows and batches are counted as they are computed, and another's not."""
    rows = given("table7.in")

    def statistics(name: str) -> Any:
        (stats,) = client.get_inference_statistics(name).model_stats
        assert (stats.name, stats.version) == (name, "1")
        return stats

    before, other = statistics("table7.encode"), statistics("table7.decode")
    for _ in range(3):
        client.infer("table7.encode", tensors(rows))
    after = statistics("table7.encode")
    assert statistics("table7.decode") == other
    assert after.inference_count - before.inference_count == 3 * len(rows["numeric"])
    assert after.execution_count - before.execution_count == 3
    assert after.last_inference > before.last_inference
    for phase in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        counts = [getattr(stats.inference_stats, phase).count for stats in (before, after)]
        assert counts[1] - counts[0] == 3, phase
    phases = ("success", "compute_input", "compute_infer", "compute_output")
    assert len({getattr(after.inference_stats, phase).count for phase in phases}) == 1
    assert after.inference_stats.queue.ns > before.inference_stats.queue.ns
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert sum(batch.compute_infer.count for batch in after.batch_stats) == after.execution_count
    assert sum(batch.batch_size * batch.compute_infer.count for batch in after.batch_stats) == after.inference_count
    assert {stats.name for stats in client.get_inference_statistics().model_stats} >= {"table7", "mixed.decode"}


def test_the_index_has_every_operation(client: Any) -> None:
    """With its version and its state."""
    index = client.get_model_repository_index().models
    assert {("image" + suffix, "1", "READY") for suffix in SUFFIXES} <= {
        (model.name, model.version, model.state) for model in index
    }
    assert len({model.name for model in index}) == len(index)


async def test_the_asyncio_client_gets_the_same() -> None:
    """Many requests at once, each with its own answer."""
    sent, expected = given("table7.in")["numeric"], given("table7.out")
    async with triton_aio.InferenceServerClient(TARGET) as client:
        assert await client.is_server_ready()
        calls = [client.infer("table7", tensors({"numeric": sent[i : i + 1]})) for i in range(len(sent))]
        for position, result in enumerate(await asyncio.gather(*calls)):
            row = {name: array[position : position + 1] for name, array in expected.items()}
            assert_same(outputs(result), row)
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            await client.infer("fraud", tensors({"numeric": sent}))


def test_a_stream_answers_in_order_and_goes_on_after_a_fault(client: Any) -> None:
    """Each request has its answer, of whichever model; one that can't be answered has an error, and those after theirs.

    An answer says that it is its request's last to whoever asks.
    """
    answers: Queue[tuple[Any, Any]] = Queue()
    sent, names = given("table7.in"), ["table7", "table7.encode", "fraud", "table7"]
    client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        for number in range(40):
            client.async_stream_infer(
                names[number % 4],
                tensors(sent),
                request_id=str(number),
                enable_empty_final_response=number % 4 == 1,
            )
        for number in range(40):
            result, error = answers.get(timeout=60)
            name = names[number % 4]
            assert (error is not None) == (name == "fraud")
            if error is not None:
                assert "model: 'fraud'; the service has" in str(error)
                continue
            response = result.get_response()
            assert (response.id, response.model_name) == (str(number), name)
            assert_same(outputs(result), given(f"{name}.out"))
            assert response.parameters["triton_final_response"].bool_param == (number % 4 == 1)
    finally:
        client.stop_stream()
    assert answers.empty()


async def test_the_asyncio_client_streams_too() -> None:
    """A stream of requests gives their answers in order."""

    async def requests() -> Any:
        for number in range(10):
            yield {"model_name": "table7", "inputs": tensors(given("table7.in")), "request_id": str(number)}

    async with triton_aio.InferenceServerClient(TARGET) as client:
        number = 0
        async for result, error in client.stream_infer(requests()):
            assert error is None
            assert result.get_response().id == str(number)
            assert_same(outputs(result), given("table7.out"))
            number += 1
    assert number == 10


def _messages(file: Any) -> Iterator[tuple[str, Any]]:
    """Yield the messages and enums of a file by their names, nested ones too."""
    stack = [("", message) for message in (*file.message_type, *file.enum_type)]
    while stack:
        prefix, descriptor = stack.pop()
        name = f"{prefix}{descriptor.name}"
        yield name, descriptor
        if isinstance(descriptor, descriptor_pb2.DescriptorProto):
            stack += [(f"{name}.", nested) for nested in (*descriptor.nested_type, *descriptor.enum_type)]


def _fields(message: Any) -> set[tuple[Any, ...]]:
    """Return what of each field is on the wire or in a program, with the choice that it is one of."""
    return {
        (
            field.name,
            field.number,
            field.type,
            field.label,
            field.type_name,
            message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else "",
        )
        for field in message.field
    }


def _methods(service: Any) -> set[tuple[Any, ...]]:
    return {
        (method.name, method.input_type, method.output_type, method.client_streaming, method.server_streaming)
        for method in service.method
    }


def test_our_protos_are_theirs() -> None:
    """Every message, field, value and method of ours is Triton's to the number; the protocol's own properties apart."""
    theirs: dict[str, Any] = {}
    for module in (service_pb2, model_config_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        assert file.package == "inference"
        theirs |= dict(_messages(file))
        theirs |= {f"{service.name}()": service for service in file.service}
    files = descriptor_pb2.FileDescriptorSet.FromString((GIVEN / "protos.bin").read_bytes()).file
    assert [file.package for file in files] == ["inference"] * 2
    extra, compared = set(), 0
    for file in files:
        for name, ours in _messages(file):
            if isinstance(ours, descriptor_pb2.EnumDescriptorProto):
                values = {(value.name, value.number) for value in theirs[name].value}
                assert {(value.name, value.number) for value in ours.value} <= values
            elif name in theirs:
                extra |= {(name, *field) for field in _fields(ours) - _fields(theirs[name])}
                assert ours.options.map_entry == theirs[name].options.map_entry
            else:
                extra.add((name,))
            compared += 1
        for service in file.service:
            assert _methods(service) <= _methods(theirs[f"{service.name}()"])
            assert len(service.method) == 12
    assert compared > 50
    properties = ("ModelMetadataResponse", "properties", 6, 11, 3)
    entry = "ModelMetadataResponse.PropertiesEntry"
    assert extra == {(*properties, f".inference.{entry}", ""), (entry,)}
