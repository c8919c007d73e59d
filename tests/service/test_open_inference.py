"""The Open Inference Protocol: by Triton's and KServe's own clients, each in a process of its own, and by hand."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray

from tests.service import held
from tests.service.test_server import get
from vaeserve.client import Client
from vaeserve.local import LocalService, serve_locally
from vaeserve.scores import Bound, Scores
from vaeserve_service.oip import grpc_service_pb2 as pb
from vaeserve_service.oip import model_config_pb2 as config_pb
from vaeserve_service.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub

PEERS = Path(__file__).parent / "peers"
ROOT = Path(__file__).parents[2]
NUMBERS = ("score", "elbo", "log_likelihood", "kl", "p_value", "anomalous", "status")
Arrays = dict[str, NDArray[Any]]


def run_peer(name: str, target: str, given: Path) -> None:
    """Run the tests of another client in a process of its own, and fail with what they say."""
    variables = {"PEER_TARGET": target, "PEER_GIVEN": str(given)}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(PEERS / f"{name}.py")],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=inherited | variables,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout


def score_arrays(scores: Scores, top_features: int = 0) -> Arrays:
    """Return scores as the outputs of the protocol."""
    arrays: Arrays = {name: getattr(scores, name) for name in NUMBERS}
    if top_features:
        rows = scores.attributions
        arrays["attribution_feature"] = np.array([[a.feature for a in row] for row in rows], object)
        arrays["attribution_excess"] = np.array([[a.excess for a in row] for row in rows], np.float32)
    return arrays


@pytest.fixture(scope="module")
def given(client: Client, inputs_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What our own client sent and got, and our protos, in files for those that can't share a process with us."""
    folder = tmp_path_factory.mktemp("given")

    def write(name: str, arrays: Arrays) -> None:
        texts = {key: array.astype(object) if array.dtype.kind == "U" else array for key, array in arrays.items()}
        np.savez(folder / f"{name}.npz", allow_pickle=True, **texts)

    for name in ("table7", "mixed", "image"):
        inputs = inputs_of(name, 12)
        if name == "table7":
            inputs["numeric"][3, 2] = np.nan  # which this model learned nothing of: the row can't be scored
        encoded = client.encode(name, inputs)
        latents = np.nan_to_num(encoded.mean)
        reconstructed = client.reconstruct(name, inputs)
        posterior: Arrays = {"mean": encoded.mean, "log_variance": encoded.log_variance, "status": encoded.status}
        for suffix in ("", ".encode", ".reconstruct"):
            write(f"{name}{suffix}.in", inputs)
        write(f"{name}.decode.in", {"latents": latents})
        write(f"{name}.out", score_arrays(client.score(name, inputs)))
        write(f"{name}.encode.out", posterior)
        write(f"{name}.decode.out", client.decode(name, latents).outputs)
        write(f"{name}.reconstruct.out", reconstructed.outputs | {"status": reconstructed.status})
    mixed = inputs_of("mixed", 12)
    asked = client.score("mixed", mixed, num_samples=5, bound=Bound.IWAE, seed=3, top_features=2)
    write("mixed.options", score_arrays(asked, 2))
    write("mixed.rate", score_arrays(client.score("mixed", mixed, false_positive_rate=0.5)))
    files = FileDescriptorSet()
    for module in (config_pb, pb):
        module.DESCRIPTOR.CopyToProto(files.file.add())
    (folder / "protos.bin").write_bytes(files.SerializeToString())
    return folder


def test_tritons_client_works(service: LocalService, given: Path) -> None:
    """Every call of an unmodified tritonclient, sync, asyncio and streaming, does what it does with Triton."""
    run_peer("triton", service.target, given)


def test_kserves_client_works(service: LocalService, given: Path) -> None:
    """KServe's client gets what our own does, with raw and typed contents."""
    run_peer("kserve", service.target, given)


def test_an_operator_loads_with_tritons_client(shelf: Any, tmp_path: Path) -> None:
    """Where the settings enable it, models are loaded and unloaded."""
    shelf.add(1)
    options = ["--set", "admin.enabled=true", "--set", "repository.poll_s=0"]
    with serve_locally(shelf.path, log=tmp_path / "log", options=options) as started:
        run_peer("triton_admin", started.target, tmp_path)


@pytest.fixture
def stub(service: LocalService) -> Iterator[Any]:
    """A stub of the protocol on the running service."""
    with grpc.insecure_channel(service.target) as channel:
        yield GRPCInferenceServiceStub(channel)


def request(rows: NDArray[np.float32], **asked: Any) -> pb.ModelInferRequest:
    """Return a request to score a table, raw."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="numeric", datatype="FP32", shape=rows.shape)
    asked = {"model_name": "table7"} | asked
    return pb.ModelInferRequest(inputs=[tensor], raw_input_contents=[rows.tobytes()], **asked)


def test_the_properties_say_what_the_model_is(stub: Any, models: Any) -> None:
    """Metadata has the latent's size, the likelihood, the calibration, and a table's columns in their order."""
    manifest = models.bundles["mixed"].manifest
    properties = stub.ModelMetadata(pb.ModelMetadataRequest(name="mixed.encode"), timeout=20).properties
    assert (properties["latent_dim"], properties["prior"]) == (str(manifest.latent_dim), manifest.prior)
    assert properties["likelihood"] == ", ".join(manifest.likelihoods)
    calibration = json.loads(properties["calibration"])
    assert calibration["rows"] == manifest.calibration.rows
    assert calibration["quantiles"]["elbo"]["0.5"] == manifest.calibration.quantiles[Bound.ELBO]["0.5"]
    assert [column["name"] for column in json.loads(properties["columns"])] == list(manifest.signature.features)


def test_calls_are_counted_as_our_own_are(service: LocalService, stub: Any) -> None:
    """By RPC, model and version, with labels that a caller can't make up; a stream's faults each by its code."""
    rows = np.zeros((5, 7), np.float32)
    metadata = (("x-request-id", "mine"),)
    stub.ModelInfer(request(rows, model_name="table7.encode"), timeout=20)
    with pytest.raises(grpc.RpcError) as refusal:
        stub.ModelInfer(request(rows, model_name="made-up.encode"), timeout=20, metadata=metadata)
    trailers: Any = refusal.value.trailing_metadata()
    assert dict(trailers)["x-request-id"] == "mine"
    _, refused = stub.ModelStreamInfer(iter([request(rows), request(rows, model_name="made-up" * 9999)]), timeout=20)
    assert len(refused.error_message) < 1100
    _, metrics = get(f"{service.http}/metrics")
    assert "made-up" not in metrics
    for line in (
        'vaeserve_requests_total{code="OK",model="table7",rpc="ModelInfer",version="1"}',
        'vaeserve_requests_total{code="NOT_FOUND",model="",rpc="ModelInfer",version=""}',
        'vaeserve_requests_total{code="OK",model="table7",rpc="ModelStreamInfer",version="1"}',
        'vaeserve_requests_total{code="NOT_FOUND",model="",rpc="ModelStreamInfer",version=""}',
        'vaeserve_rows_total{model="table7",rpc="ModelInfer",version="1"}',
    ):
        assert re.search(rf"^{re.escape(line)} [1-9]", metrics, re.MULTILINE), line


def test_reflection_lists_the_service(service: LocalService) -> None:
    """A tool that asks for what there is finds the protocol, and its messages."""
    with grpc.insecure_channel(service.target) as channel:
        reflecting: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest"),
        ]
        services, file = reflecting.ServerReflectionInfo(iter(asked), timeout=20)
    assert "inference.GRPCInferenceService" in {each.name for each in services.list_services_response.service}
    assert file.file_descriptor_response.file_descriptor_proto


def test_it_can_be_turned_off(models: Any, tmp_path: Path) -> None:
    """Then its calls are unimplemented, and our own are as they were."""
    options = ["--set", "server.open_inference=false", "--set", 'repository.models=["table7"]']
    with (
        serve_locally(models.repository, log=tmp_path / "log", options=options) as started,
        grpc.insecure_channel(started.target) as channel,
        Client(started.target) as client,
    ):
        with pytest.raises(grpc.RpcError) as refusal:
            GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=20)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert len(client.score("table7", np.zeros((2, 7), np.float32)).score) == 2


def test_a_lame_duck_is_live_and_not_ready(models: Any, tmp_path: Path) -> None:
    """Readiness is health's: a service that was told to stop isn't ready, nor are its models, and still answers."""
    options = ["--set", "drain.lame_duck_s=600", "--set", 'repository.models=["table7"]']
    with (
        serve_locally(models.repository, log=tmp_path / "log", options=options) as started,
        grpc.insecure_channel(started.target) as channel,
    ):
        stub: Any = GRPCInferenceServiceStub(channel)
        started.process.send_signal(signal.SIGTERM)
        while stub.ServerReady(pb.ServerReadyRequest(), timeout=20).ready:
            assert started.process.poll() is None
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live
        assert not stub.ModelReady(pb.ModelReadyRequest(name="table7.encode"), timeout=20).ready
        assert stub.ModelInfer(request(np.zeros((1, 7), np.float32)), timeout=20).model_version == "1"
        started.process.send_signal(signal.SIGTERM)


def test_limits_are_those_of_our_own(models: Any, tmp_path: Path) -> None:
    """A tensor, a request's rows and an answer have the same limits, and a configuration says what is left."""
    options = ["--set", "limits.tensor_elements=70", "--set", "limits.response_bytes=200"]
    with (
        serve_locally(
            models.repository, log=tmp_path / "log", options=[*options, "--set", 'repository.models=["table7"]']
        ) as started,
        grpc.insecure_channel(started.target) as channel,
    ):
        stub: Any = GRPCInferenceServiceStub(channel)
        most = stub.ModelConfig(pb.ModelConfigRequest(name="table7"), timeout=20).config.max_batch_size
        assert len(stub.ModelInfer(request(np.zeros((most, 7), np.float32)), timeout=20).outputs) == 7
        for rows, said in ((11, "takes 70 in a tensor at most"), (most + 1, "the service gives 200 bytes")):
            with pytest.raises(grpc.RpcError) as refusal:
                stub.ModelInfer(request(np.zeros((rows, 7), np.float32)), timeout=20)
            assert refusal.value.code() is grpc.StatusCode.OUT_OF_RANGE
            assert said in str(refusal.value.details())


def timed(microseconds: int) -> dict[str, pb.InferParameter]:
    """Return the parameter of a request that may wait so long."""
    return {"timeout": pb.InferParameter(int64_param=microseconds)}


async def code_of(call: Any) -> grpc.StatusCode:
    """Return how a call ends."""
    code: grpc.StatusCode = await call.code()
    return code


async def test_a_timeout_ends_the_wait_before_anything_is_computed(models: Any) -> None:
    """A request that waits longer than it may is DEADLINE_EXCEEDED and never computed; one that is computed isn't."""
    first, second, third = (np.full((1, 7), value, np.float32) for value in (1, 2, 3))
    async with (
        held.serving(models.repository, "table7") as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        stub: Any = GRPCInferenceServiceStub(channel)
        computing = stub.ModelInfer(request(first, parameters=timed(1000)))
        await service.until(lambda: len(service.scorer.runs) == 1)
        waiting = stub.ModelInfer(request(second, parameters=timed(1000)))
        assert await code_of(waiting) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "timeout: 1000 microseconds passed in the queue" in await waiting.details()
        assert service.model.waiting_rows == 0
        patient = stub.ModelInfer(request(third, parameters=timed(10**9)))
        await service.until(lambda: service.model.waiting_rows == 1)
        service.scorer.let()
        assert [len((await call).outputs) for call in (computing, patient)] == [7, 7]
        assert service.scorer.rows.tolist() == [*first.tolist(), *third.tolist()]


async def test_a_full_queue_says_when_to_try_again(models: Any) -> None:
    """One request hears of it with its time to retry after, a stream's in its own answer, after which it goes on."""
    rows = np.zeros((1, 7), np.float32)
    async with (
        held.serving(models.repository, "table7", limits={"queue_rows": 1}, batching={"max_rows": 1}) as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        stub: Any = GRPCInferenceServiceStub(channel)
        computing = stub.ModelInfer(request(rows))
        await service.until(lambda: len(service.scorer.runs) == 1)
        waiting = stub.ModelInfer(request(rows))
        await service.until(lambda: service.model.waiting_rows == 1)
        refused = stub.ModelInfer(request(rows))
        assert await code_of(refused) is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(await refused.trailing_metadata())
        assert trailers["grpc-retry-pushback-ms"] == "100"
        status, retry = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]), error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(retry)
        stream = stub.ModelStreamInfer()
        await stream.write(request(rows, id="a"))
        answer = await stream.read()
        assert "queue: 1 rows wait, and 1 more exceed 1; retry later" in answer.error_message
        assert answer.infer_response.id == "a"
        service.scorer.let()
        await asyncio.gather(computing, waiting)
        await stream.write(request(rows, id="b"))
        answer = await stream.read()
        assert (answer.error_message, answer.infer_response.id) == ("", "b")
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


async def test_requests_of_both_protocols_share_a_batch(models: Any) -> None:
    """There is one queue: what came by the one and by the other is computed in one call."""
    rows = np.zeros((1, 7), np.float32)
    async with (
        held.serving(models.repository, "table7") as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        stub: Any = GRPCInferenceServiceStub(channel)
        computing = stub.ModelInfer(request(rows))
        await service.until(lambda: len(service.scorer.runs) == 1)
        theirs = stub.ModelInfer(request(rows))
        ours = asyncio.create_task(asyncio.to_thread(_score, service.target, rows))
        await service.until(lambda: service.model.waiting_rows == 2)
        service.scorer.let()
        await asyncio.gather(computing, theirs)
        score = np.frombuffer((await theirs).raw_output_contents[0], np.float32)
        assert score.tobytes() == (await ours).tobytes()
        assert [len(run["numeric"]) for run in service.scorer.runs] == [1, 2]


def _score(target: str, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    with Client(target) as client:
        return client.score("table7", rows).score


async def test_a_caller_that_goes_away_takes_its_rows_along(models: Any) -> None:
    """What a cancelled call, or a stream that ends, still had to wait for is never computed."""
    rows = np.zeros((1, 7), np.float32)
    async with (
        held.serving(models.repository, "table7") as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        stub: Any = GRPCInferenceServiceStub(channel)
        computing = stub.ModelInfer(request(rows))
        await service.until(lambda: len(service.scorer.runs) == 1)
        waiting, stream = stub.ModelInfer(request(rows)), stub.ModelStreamInfer()
        await stream.write(request(rows))
        await stream.write(request(rows))
        await service.until(lambda: service.model.waiting_rows == 3)
        waiting.cancel()
        stream.cancel()
        await service.until(lambda: service.model.waiting_rows == 0)
        service.scorer.let()
        await computing
        assert len(service.scorer.runs) == 1


async def test_a_defect_of_ours_ends_a_call_and_a_stream_with_internal(models: Any) -> None:
    """Its caller hears that there was one, and nothing more; the statistics have it as failed."""
    rows = np.zeros((1, 7), np.float32)
    async with (
        held.serving(models.repository, "table7") as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        stub: Any = GRPCInferenceServiceStub(channel)
        service.scorer.breaks = lambda _: True
        service.scorer.let()
        calls: list[Callable[[], Any]] = [lambda: stub.ModelInfer(request(rows)), lambda: _streamed(stub, rows)]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await call()
            assert refusal.value.code() is grpc.StatusCode.INTERNAL
            assert refusal.value.details() == "internal error; the service's log has the details"
        (stats,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="table7"))).model_stats
        assert (stats.inference_stats.fail.count, stats.inference_stats.success.count) == (2, 0)


async def _streamed(stub: Any, rows: NDArray[np.float32]) -> None:
    async for _ in stub.ModelStreamInfer(iter([request(rows)])):
        pass
