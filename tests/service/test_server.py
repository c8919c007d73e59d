"""The service as a process: what it answers, and how it starts and stops."""

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from vaeserve import AsyncClient
from vaeserve.latents import Interpolation, path, prior_draws
from vaeserve.local import LocalService, serve_locally
from vaeserve.messages import METHODS
from vaeserve.tensors import from_tensor, from_tensors, to_tensor
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub
from vaeserve_service.runtime import Runtime

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def channel(service: LocalService) -> Iterator[grpc.Channel]:
    """A channel to the running service."""
    with grpc.insecure_channel(service.target) as opened:
        yield opened


def get(url: str) -> tuple[int, str]:
    """Return the status and body of an HTTP answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as response:  # noqa: S310 - loopback
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def score_request(rows: np.ndarray, **options: Any) -> pb.ScoreRequest:
    """Return a request to score a table of 7 columns."""
    return pb.ScoreRequest(model=pb.ModelSpec(name="table7"), inputs=[to_tensor(rows)], **options)


def generate_request(**options: Any) -> pb.GenerateRequest:
    """Return a request to generate rows of a table of 7 columns and 3 latent dimensions."""
    asked: dict[str, Any] = {"model": pb.ModelSpec(name="table7"), "count": 1} | options
    return pb.GenerateRequest(**asked)


def interpolate_request(**options: Any) -> pb.InterpolateRequest:
    """Return a request to interpolate for that table, from 0 to 1."""
    ends = {"start": to_tensor(np.zeros(3)), "end": to_tensor(np.ones(3))}
    asked: dict[str, Any] = {"model": pb.ModelSpec(name="table7"), "steps": 5} | ends | options
    return pb.InterpolateRequest(**asked)


def test_scores_over_the_wire_are_the_runtimes_bits(models: Any, channel: grpc.Channel, rows_of: Any) -> None:
    """A score that comes over gRPC has the bits that the runtime gives in this process."""
    rows, bundle = rows_of("table7", 50), models.bundles["table7"]
    response = VaeServiceStub(channel).Score(score_request(rows), timeout=20)
    expected = Runtime.load(bundle).score({"numeric": rows}, bundle.noise[: bundle.manifest.num_samples])
    for name in ("elbo", "log_likelihood", "kl"):
        assert np.array(getattr(response, name), np.float32).tobytes() == expected[name].tobytes()
    assert np.array(response.score, np.float32).tobytes() == (-expected["elbo"]).tobytes()
    assert (response.model.name, response.model.version) == ("table7", "1")


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (
            score_request(np.zeros((2, 6), np.float32)),
            "INVALID_ARGUMENT",
            "numeric: 6 columns, the model takes 7",
        ),
        (score_request(np.array([["a"] * 7])), "INVALID_ARGUMENT", "numeric: strings; the model takes FLOAT32"),
        (
            score_request(np.zeros((2, 7), np.float32), num_samples=0),
            "INVALID_ARGUMENT",
            "num_samples: 0; expected a whole number from 1",
        ),
        (
            score_request(np.zeros((2, 7), np.float32), num_samples=257),
            "OUT_OF_RANGE",
            "num_samples: 257; the model has 256 noise points",
        ),
        (
            score_request(np.zeros((2, 7), np.float32), false_positive_rate=0.001),
            "INVALID_ARGUMENT",
            "false_positive_rate: 0.001; 120 calibration rows support 0.00826 or more, and 0.001 takes 999",
        ),
        (
            score_request(np.zeros((2, 7), np.float32), false_positive_rate=0.1, seed=1),
            "INVALID_ARGUMENT",
            "with other options than the calibrated ones",
        ),
        (score_request(np.zeros((2, 7), np.float32), bound=9), "INVALID_ARGUMENT", "bound: 9; expected ELBO or IWAE"),
        (
            score_request(np.zeros((100_001, 7), np.uint8)),
            "OUT_OF_RANGE",
            "rows: 100001 in a request; the service takes 100000 at most",
        ),
        (
            score_request(np.zeros((4000, 7), np.float32), num_samples=256),
            "OUT_OF_RANGE",
            "rows: 4000 in a request, each counted 128 times for its samples",
        ),
        (
            pb.ScoreRequest(model=pb.ModelSpec(name="table7"), inputs=[pb.Tensor(dtype=pb.FLOAT32, shape=[1, 7])]),
            "INVALID_ARGUMENT",
            "inputs[0]: 0 bytes of data",
        ),
        (
            pb.ScoreRequest(model=pb.ModelSpec(name="table7"), inputs=[pb.Tensor(dtype=pb.FLOAT32, shape=[2**62, 0])]),
            "INVALID_ARGUMENT",
            "expected a smaller",
        ),
        (pb.ScoreRequest(model=pb.ModelSpec(name="table7")), "INVALID_ARGUMENT", "inputs: none; the model takes"),
        (pb.ScoreRequest(), "INVALID_ARGUMENT", "model.name: empty; expected one of"),
        (pb.ScoreRequest(model=pb.ModelSpec(name="fraud")), "NOT_FOUND", "model: 'fraud'; the service has"),
        (
            pb.ScoreRequest(model=pb.ModelSpec(name="table7", version="9")),
            "NOT_FOUND",
            "model 'table7', version: '9'; the service has 1",
        ),
    ],
)
def test_a_wrong_request_has_its_code_and_message(
    channel: grpc.Channel, request_: pb.ScoreRequest, code: str, message: str
) -> None:
    """Each fault of a caller's has the right code, and names the field, the value and what was expected."""
    with pytest.raises(grpc.RpcError) as refusal:
        VaeServiceStub(channel).Score(request_, timeout=20)
    assert refusal.value.code().name == code
    assert message in str(refusal.value.details())


def test_a_stream_is_answered_in_order_with_the_bits_of_single_calls(channel: grpc.Channel, rows_of: Any) -> None:
    """Each answer has its request's id, and what Score answers to the same request, options and all."""
    rows = rows_of("table7", 300)
    sizes = [1, 7, 0, 64, 1, 200]
    asked = [
        score_request(rows[:size], request_id=f"r{position}", top_features=position % 3, num_samples=1 + position % 4)
        for position, size in enumerate(sizes * 30)
    ]
    stub: Any = VaeServiceStub(channel)
    answers = list(stub.ScoreStream(iter(asked), timeout=60))
    assert [answer.request_id for answer in answers] == [request.request_id for request in asked]
    for request, answer in list(zip(asked, answers, strict=True))[:12]:
        assert stub.Score(request, timeout=20).SerializeToString() == answer.SerializeToString()


def test_a_wrong_request_ends_its_stream_after_the_answers_before_it(channel: grpc.Channel, rows_of: Any) -> None:
    """The error names the request; answers that were due come first, and other streams go on."""
    stub: Any = VaeServiceStub(channel)
    right = score_request(rows_of("table7", 3))
    wrong = score_request(np.zeros((2, 6), np.float32), request_id="wrong one")
    answers: deque[pb.ScoreResponse] = deque()
    with pytest.raises(grpc.RpcError) as refusal:
        answers.extend(stub.ScoreStream(iter([right, right, wrong, right]), timeout=20))
    assert len(answers) == 2
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal.value.details() == "request_id 'wrong one': numeric: 6 columns, the model takes 7"
    raw: Any = channel.stream_stream("/vaeserve.v1.VaeService/ScoreStream")
    with pytest.raises(grpc.RpcError) as refusal:
        list(raw(iter([b"not protobuf"]), timeout=20))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_that_takes_no_answers_is_read_no_further(channel: grpc.Channel, rows_of: Any) -> None:
    """Far from all that it would send is taken from it; once it reads, every answer comes."""
    sent, count = 0, 1200
    request = score_request(rows_of("table7", 1000))  # each answer is some 30 kB

    def requests() -> Iterator[pb.ScoreRequest]:
        nonlocal sent
        for _ in range(count):
            sent += 1
            yield request

    stub: Any = VaeServiceStub(channel)
    answers = stub.ScoreStream(requests(), timeout=120)
    next(answers)
    before = -1
    while sent != before:  # until it stands still
        before = sent
        stub.Score(request, timeout=20)
        stub.Score(request, timeout=20)
    assert sent < count / 2
    assert sum(1 for _ in answers) == count - 1


@pytest.mark.parametrize("content", [b"\xff\xff\xff", b"\x0a\xff", b"not protobuf"])
def test_bytes_that_are_no_message_are_the_callers_fault(channel: grpc.Channel, content: bytes) -> None:
    """A malformed message is INVALID_ARGUMENT, and the service goes on."""
    call: Any = channel.unary_unary("/vaeserve.v1.VaeService/Score")
    with pytest.raises(grpc.RpcError) as refusal:
        call(content, timeout=20)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no vaeserve.v1.ScoreRequest" in str(refusal.value.details())


def test_an_unknown_rpc_is_unimplemented(channel: grpc.Channel) -> None:
    """A method that isn't there says so."""
    call: Any = channel.unary_unary("/vaeserve.v1.VaeService/Train")
    with pytest.raises(grpc.RpcError) as refusal:
        call(b"", timeout=20)
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_latents_are_checked(channel: grpc.Channel) -> None:
    """Latents of another width, and such as aren't finite, are refused."""
    stub, model = VaeServiceStub(channel), pb.ModelSpec(name="table7")
    wide, far = "latents: float32 of shape [1, 4]; the model takes numbers of shape [rows, 3]", "lie within +-1000"
    for latents, code, message in (
        (np.zeros((1, 4), np.float32), "INVALID_ARGUMENT", wide),
        (np.full((1, 3), np.nan, np.float32), "OUT_OF_RANGE", far),
        (np.full((1, 3), 1e300), "OUT_OF_RANGE", far),
    ):
        with pytest.raises(grpc.RpcError) as refusal:
            stub.Decode(pb.DecodeRequest(model=model, latents=to_tensor(latents)), timeout=20)
        assert refusal.value.code().name == code
        assert message in str(refusal.value.details())


@pytest.mark.parametrize("kind", ["table7", "binary21", "image", "conv", "mixed", "codes"])
def test_generate_decodes_the_seeds_draws(models: Any, channel: grpc.Channel, kind: str) -> None:
    """Every output of each kind of model has the bits that the runtime gives for the draws in this process."""
    spec = pb.ModelSpec(name=kind)
    request = pb.GenerateRequest(model=spec, count=30, seed=2**64 - 1, temperature=1.5)
    response = VaeServiceStub(channel).Generate(request, timeout=20)
    bundle = models.bundles[kind]
    draws = prior_draws(30, bundle.manifest.latent_dim, seed=2**64 - 1, temperature=1.5)
    expected = Runtime.load(bundle).decode(draws)
    outputs = from_tensors(response.outputs)
    assert outputs.keys() == expected.keys()
    for name, output in outputs.items():
        np.testing.assert_array_equal(output, expected[name], strict=output.dtype != object)
    assert (response.model.name, response.model.version) == (kind, "1")
    columns = bundle.manifest.signature.categorical_columns
    for column, drawn in zip(columns, outputs.get("categorical", np.empty((30, 0))).T, strict=True):
        assert set(drawn) <= set(column.categories)


def test_generate_has_its_defaults(channel: grpc.Channel) -> None:
    """Without a seed it is 0, without a temperature 1, and a temperature of 0 is none of them."""
    requests = generate_request(), generate_request(seed=0, temperature=1.0), generate_request(temperature=0.0)
    plain, told, cold = (VaeServiceStub(channel).Generate(each, timeout=20).outputs for each in requests)
    assert list(plain) == list(told) != list(cold)


@pytest.mark.parametrize("kind", ["table7", "image", "mixed"])
@pytest.mark.parametrize("method", Interpolation)
def test_interpolate_decodes_the_path(models: Any, channel: grpc.Channel, kind: str, method: Interpolation) -> None:
    """The latents are the path's and the outputs the runtime's for them, whichever form the ends have."""
    bundle = models.bundles[kind]
    start, end = prior_draws(2, bundle.manifest.latent_dim, seed=1)
    request = pb.InterpolateRequest(
        model=pb.ModelSpec(name=kind), start=to_tensor(start), end=to_tensor(end[None]), steps=8, method=METHODS[method]
    )
    response = VaeServiceStub(channel).Interpolate(request, timeout=20)
    latents = from_tensor(response.latents)
    assert latents.tobytes() == path(start, end, steps=8, method=method).tobytes()
    expected = Runtime.load(bundle).decode(latents)
    outputs = from_tensors(response.outputs)
    assert outputs.keys() == expected.keys()
    for name, output in outputs.items():
        np.testing.assert_array_equal(output, expected[name], strict=output.dtype != object)


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (generate_request(model=None), "INVALID_ARGUMENT", "model.name: empty; expected one of"),
        (generate_request(model=pb.ModelSpec(name="fraud")), "NOT_FOUND", "model: 'fraud'; the service has"),
        (
            generate_request(count=2**32 - 1),
            "OUT_OF_RANGE",
            "count: 4294967295 rows in a request; the service takes 100000 at most",
        ),
        (generate_request(count=100_001), "OUT_OF_RANGE", "count: 100001 rows in a request"),
        (generate_request(temperature=-1), "INVALID_ARGUMENT", "temperature: -1.0; expected a number from 0 to 100"),
        (generate_request(temperature=np.nan), "INVALID_ARGUMENT", "temperature: nan; expected"),
        (
            interpolate_request(steps=2**32 - 1),
            "OUT_OF_RANGE",
            "steps: 4294967295 rows in a request; the service takes 100000 at most",
        ),
        (interpolate_request(steps=1), "INVALID_ARGUMENT", "steps: 1; expected a whole number from 2"),
        (interpolate_request(method=7), "INVALID_ARGUMENT", "method: 7; expected LINEAR or SPHERICAL"),
        (interpolate_request(method=pb.SPHERICAL), "INVALID_ARGUMENT", "start: 0 everywhere; expected a direction"),
        (
            interpolate_request(end=to_tensor(np.zeros(4))),
            "INVALID_ARGUMENT",
            "end: 4 numbers; the model's latents have 3",
        ),
        (
            interpolate_request(start=to_tensor(np.zeros((2, 3)))),
            "INVALID_ARGUMENT",
            "start: float64 of shape [2, 3]; expected the numbers of one latent, [3]",
        ),
        (interpolate_request(end=to_tensor(np.full(3, np.inf))), "OUT_OF_RANGE", "end: not all of them lie within"),
        (interpolate_request(start=None), "INVALID_ARGUMENT", "start: shape []; expected one dimension or more"),
    ],
)
def test_what_cannot_be_generated_has_its_code_and_message(
    channel: grpc.Channel, request_: pb.GenerateRequest | pb.InterpolateRequest, code: str, message: str
) -> None:
    """Each fault in what to generate or interpolate has the right code, and names the field and its value."""
    stub: Any = VaeServiceStub(channel)
    call = stub.Generate if isinstance(request_, pb.GenerateRequest) else stub.Interpolate
    with pytest.raises(grpc.RpcError) as refusal:
        call(request_, timeout=20)
    assert refusal.value.code().name == code
    assert message in str(refusal.value.details())


def test_health_is_overall_by_model_and_for_liveness(channel: grpc.Channel) -> None:
    """Check answers for the whole service, each model and liveness; an unknown name is NOT_FOUND."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for name in ("", "liveness", "table7", "vaeserve.v1.VaeService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status == SERVING
    with pytest.raises(grpc.RpcError) as refusal:
        stub.Check(health_pb2.HealthCheckRequest(service="fraud"), timeout=20)
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    """Reflection names our service, health and itself."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=20)
    names = {service.name for service in answer.list_services_response.service}
    assert {"vaeserve.v1.VaeService", "grpc.health.v1.Health"} <= names


def test_http_answers_probes_and_metrics(service: LocalService, channel: grpc.Channel, rows_of: Any) -> None:
    """The HTTP port says alive and ready, and counts calls and rows by model."""
    VaeServiceStub(channel).Score(score_request(rows_of("table7", 3)), timeout=20)
    assert get(f"{service.http}/livez") == (200, "ok\n")
    assert get(f"{service.http}/readyz") == (200, "ok\n")
    assert get(f"{service.http}/secret")[0] == 404
    status, metrics = get(f"{service.http}/metrics")
    assert status == 200
    assert 'vaeserve_requests_total{code="OK",model="table7",rpc="Score",version="1"}' in metrics
    assert 'vaeserve_batch_rows_count{model="table7",version="1"}' in metrics
    assert 'vaeserve_model_ready{model="image",version="1"} 1.0' in metrics


def test_labels_are_bounded_by_the_models_served(service: LocalService, channel: grpc.Channel) -> None:
    """A caller can't make metrics grow by asking for models that aren't there."""
    with pytest.raises(grpc.RpcError):
        VaeServiceStub(channel).Score(pb.ScoreRequest(model=pb.ModelSpec(name="made-up")), timeout=20)
    _, metrics = get(f"{service.http}/metrics")
    assert "made-up" not in metrics
    assert 'code="NOT_FOUND",model="",rpc="Score"' in metrics


def metric(service: LocalService, name: str) -> float:
    """Return a metric's value, 0 if it isn't there yet."""
    lines = get(f"{service.http}/metrics")[1].splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name)), 0.0)


async def test_waiting_requests_are_joined(models: Any, tmp_path: Path, rows_of: Any) -> None:
    """What comes while the only runner is busy takes few calls besides, and each caller gets its own row."""
    rows, batches = rows_of("table33", 400), 'vaeserve_batch_rows_count{model="table33",version="1"}'
    options = ["--set", "runtime.runners=1", "--set", "batching.max_rows=400"]
    with serve_locally(models.repository, log=tmp_path / "log", options=options) as service:
        async with AsyncClient(service.target) as client:
            together = await client.score("table33", rows)
            busy = asyncio.create_task(client.score("table33", np.tile(rows, (250, 1))))
            while await asyncio.to_thread(metric, service, batches) < 2:  # until pytest's time is up
                assert not busy.done()
            answers = await asyncio.gather(*(client.score("table33", rows[i : i + 1]) for i in range(400)))
            await busy
        assert b"".join(answer.score.tobytes() for answer in answers) == together.score.tobytes()
        assert metric(service, batches) < 1 + 250 + 200


def test_a_deadline_that_has_passed_ends_the_call_in_the_service_too(
    service: LocalService, channel: grpc.Channel
) -> None:
    """A call that can't be answered in its time ends with DEADLINE_EXCEEDED, here and in the service's count."""
    rows, passed = np.zeros((100_000, 7), np.float32), 'vaeserve_requests_total{code="DEADLINE_EXCEEDED"'
    while not metric(service, passed):  # until pytest's time is up: a call may be over before it is the service's
        with pytest.raises(grpc.RpcError) as refusal:
            VaeServiceStub(channel).Score(score_request(rows), timeout=0.05)
        assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_a_full_queue_says_when_to_try_again(models: Any, tmp_path: Path, rows_of: Any) -> None:
    """A service whose queue is full refuses with RESOURCE_EXHAUSTED and a time to wait, and answers again later."""
    options = ["--set", "limits.queue_rows=10", "--set", "runtime.runners=1", "--set", "batching.max_rows=1"]
    with (
        serve_locally(models.repository, log=tmp_path / "log", options=options) as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        stub, rows = VaeServiceStub(channel), np.tile(rows_of("table7", 1000), (5, 1))
        calls = [stub.Score.future(score_request(rows), timeout=60) for _ in range(20)]
        codes = [call.code() for call in calls]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        refused = calls[codes.index(grpc.StatusCode.RESOURCE_EXHAUSTED)]
        trailers = dict(refused.trailing_metadata())
        assert trailers["grpc-retry-pushback-ms"] == "100"
        status, retry = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]), error_details_pb2.RetryInfo()
        assert (status.code, status.message) == (grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], refused.details())
        assert status.details[0].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == 100
        assert len(stub.Score(score_request(rows[:3]), timeout=60).score) == 3


def test_ipv6_is_an_address_too(models: Any, tmp_path: Path, rows_of: Any) -> None:
    """The service listens on IPv6 where the machine has it."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serve_locally(models.repository, log=tmp_path / "log", options=["--host", "::1"]) as service:
        port = service.target.rpartition(":")[2]
        with grpc.insecure_channel(f"[::1]:{port}") as channel:
            assert len(VaeServiceStub(channel).Score(score_request(rows_of("table7", 2)), timeout=20).score) == 2


def test_sigterm_drains_and_exits_0(models: Any, tmp_path: Path, rows_of: Any) -> None:
    """On SIGTERM a call in flight is answered, an open health watch ends, and the process exits with 0."""
    with serve_locally(models.repository, log=tmp_path / "log") as service:
        with grpc.insecure_channel(service.target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status == SERVING
            # Much work for a small answer: gRPC may cut off a large one as it closes the connection.
            rows = np.tile(rows_of("table33", 500), (3, 1))
            request = pb.ScoreRequest(model=pb.ModelSpec(name="table33"), inputs=[to_tensor(rows)], num_samples=128)
            in_flight = VaeServiceStub(channel).Score.future(request, timeout=60)
            while not metric(service, "vaeserve_in_flight_requests"):
                assert not in_flight.done()
            service.process.send_signal(signal.SIGTERM)
            assert [state.status for state in watch] == [NOT_SERVING]
            assert len(in_flight.result().score) == 1500
        assert service.process.wait(30) == 0
    events = [json.loads(line)["event"] for line in service.log.read_text().splitlines()]
    assert [event for event in events if event != "model loaded"] == ["ready", "serving", "draining", "stopped"]


def test_a_lame_duck_still_takes_calls(models: Any, tmp_path: Path, rows_of: Any) -> None:
    """After SIGTERM the service says that it isn't ready, and answers new calls for as long as it was told to."""
    options = ["--set", "drain.lame_duck_s=3"]
    with serve_locally(models.repository, log=tmp_path / "log", options=options) as service:
        with grpc.insecure_channel(service.target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watch).status == SERVING
            service.process.send_signal(signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            assert stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=20).status == SERVING
            assert len(VaeServiceStub(channel).Score(score_request(rows_of("table7", 2)), timeout=20).score) == 2
        assert service.process.wait(30) == 0


def test_a_second_signal_ends_it_at_once(models: Any, tmp_path: Path) -> None:
    """Who can't wait for the drain sends the signal again."""
    options = ["--set", "drain.lame_duck_s=600"]
    with serve_locally(models.repository, log=tmp_path / "log", options=options) as service:
        service.process.send_signal(signal.SIGTERM)
        while "draining" not in service.log.read_text():
            assert service.process.poll() is None
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(30) == -signal.SIGTERM


def serve(*options: str) -> "subprocess.CompletedProcess[str]":
    """Run `vaeserve serve` where it should refuse to start."""
    command = [sys.executable, "-m", "vaeserve", "serve", "--host", "127.0.0.1", "--http-port", "0", *options]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)


def test_a_broken_bundle_stops_the_start_with_its_name(models: Any, tmp_path: Path) -> None:
    """A truncated graph is one message with the file's name, exit code 2, and no traceback."""
    shutil.copytree(models.bundles["table3"].path, tmp_path / "table3" / "1")
    scorer = tmp_path / "table3" / "1" / "scorer.onnx"
    scorer.write_bytes(scorer.read_bytes()[:1000])
    done = serve("--repository", str(tmp_path), "--grpc-port", "0")
    assert done.returncode == 2
    assert "scorer.onnx: 1000 bytes; the manifest says" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--repository", "{tmp}/none"], "no such folder; expected a repository"),
        (["--repository", "{tmp}"], "no bundles; expected NAME/VERSION/manifest.json"),
        ([], "repository: not set; expected it in a file, the environment or a flag"),
        (["--repository", "{tmp}", "--set", "batching.max_row=1"], "did you mean max_rows?"),
        (["--repository", "{tmp}", "--device", "tpu"], "runtime.device: 'tpu'; Input should be 'cpu' or 'cuda'"),
        (["--repository", "{tmp}", "--grpc-port", "70000"], "server.grpc_port: 70000; Input should be less"),
        (["--config", "{tmp}/none.toml"], "not found; expected a TOML file"),
    ],
)
def test_a_start_that_cannot_be_exits_2(tmp_path: Path, options: list[str], message: str) -> None:
    """A wrong setting or repository is one message that names it, exit code 2, and no traceback."""
    done = serve(*(option.replace("{tmp}", str(tmp_path)) for option in options))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_exits_2(models: Any) -> None:
    """A port in use is an error that names it, for either port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        repository = str(models.repository)
        done = serve("--repository", repository, "--grpc-port", port)
        assert (done.returncode, f"server.grpc_port: can't listen on 127.0.0.1:{port}" in done.stderr) == (2, True)
        done = serve("--repository", repository, "--grpc-port", "0", "--http-port", port)
        assert (done.returncode, f"server.http_port: can't listen on 127.0.0.1:{port}" in done.stderr) == (2, True)


def test_cuda_is_never_replaced_by_the_cpu(models: Any) -> None:
    """Asked for CUDA where there is none, the service refuses and says what to install."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has the CUDA provider here")
    done = serve("--repository", str(models.repository), "--grpc-port", "0", "--device", "cuda")
    assert done.returncode == 2
    assert "install onnxruntime-gpu" in done.stderr


async def test_the_service_stays_up_when_callers_go_away(service: LocalService, rows_of: Any) -> None:
    """Callers that cancel in the midst of their calls leave the others' answers right."""
    rows = rows_of("table7", 64)
    async with AsyncClient(service.target) as client:
        expected = (await client.score("table7", rows)).score
        calls = [asyncio.create_task(client.score("table7", rows[i : i + 1])) for i in range(64)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    for i in range(1, 64, 2):
        assert answers[i].score.tobytes() == expected[i : i + 1].tobytes()  # type: ignore[union-attr]
