"""Spans of calls: what they say, whose children they are, and what is told of them in logs."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from structlog.testing import capture_logs

from vaeserve.bundle import Bundle
from vaeserve.errors import ConfigError, InternalError
from vaeserve.local import serve_locally
from vaeserve.tensors import to_tensor
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub
from vaeserve_service.call import Call, Method, Service
from vaeserve_service.config import RepositoryConfig, ServiceConfig, TracingConfig
from vaeserve_service.grpc_aio import add_service
from vaeserve_service.metrics import Metrics
from vaeserve_service.model import Model
from vaeserve_service.observer import Observer
from vaeserve_service.repository import Repository
from vaeserve_service.runners import Runners
from vaeserve_service.runtime import Runtime
from vaeserve_service.servicers import SERVICE, VaeService, methods
from vaeserve_service.tracing import Tracing

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = ("traceparent", f"00-{TRACE}-{SPAN}-01")
UNSAMPLED = ("traceparent", f"00-{TRACE}-{SPAN}-00")
SERVER = f"{SERVICE}/Score"


def request(rows: int = 3, **fields: Any) -> pb.ScoreRequest:
    """Return a request to score some rows of 3 columns."""
    inputs = [to_tensor(np.zeros((rows, 3), np.float32))]
    return pb.ScoreRequest(model=pb.ModelSpec(name="table3"), inputs=inputs, **fields)


class Defect(VaeService):
    """A service with a fault of its own in one RPC."""

    async def list_models(self, request: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        """Fail."""
        del request, call
        raise InternalError("broken")


class Traced:
    """A service in this process, and its spans."""

    def __init__(self, provider: TracerProvider) -> None:
        self._exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.provider = provider
        self.stub: Any = None

    def spans(self) -> dict[str, Any]:
        """Return the spans so far by name, each the last of it."""
        return {span.name: span for span in self.finished()}

    def finished(self) -> Sequence[Any]:
        """Return the spans so far."""
        return self._exporter.get_finished_spans()


@asynccontextmanager
async def traced(bundle: Bundle, provider: TracerProvider | None = None) -> AsyncIterator[Traced]:
    """Serve a bundle in this process, traced."""
    made = Traced(provider or TracerProvider())
    repository = Repository()
    observer = Observer(Metrics(), tracing=Tracing(made.provider))
    rpcs: dict[str, Method] = methods(Defect(repository, most_elements=1000, stream_requests=4))
    server = grpc.aio.server()
    add_service(server, SERVICE, Service(rpcs), observer=observer)
    port = server.add_insecure_port("127.0.0.1:0")
    config = ServiceConfig(repository=RepositoryConfig(path=Path()))
    with Runners(1) as runners:
        repository.put(Model("table3", bundle, Runtime.load(bundle), config=config, runners=runners))
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            made.stub = VaeServiceStub(channel)
            yield made
        await server.stop(None)


async def test_a_calls_spans_are_its_callers_children(two_bundles: Any) -> None:
    """The call is part of its caller's trace; queue and batch are within the call, and run within the batch."""
    async with traced(two_bundles[0]) as service:
        await service.stub.Score(request(), metadata=(PARENT, ("x-request-id", "mine")), timeout=20)
        spans = service.spans()
    call, queue, batch, run = (spans[name] for name in (SERVER, "queue", "batch", "run"))
    assert {format(span.context.trace_id, "032x") for span in spans.values()} == {TRACE}
    assert format(call.parent.span_id, "016x") == SPAN
    assert queue.parent.span_id == batch.parent.span_id == call.context.span_id
    assert run.parent.span_id == batch.context.span_id
    assert call.kind is SpanKind.SERVER
    assert call.status.status_code is StatusCode.UNSET
    assert call.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": SERVER,
        "rpc.response.status_code": "OK",
        "vaeserve.model": "table3",
        "vaeserve.version": "1",
        "vaeserve.rows": 3,
        "vaeserve.request_id": "mine",
    }
    assert [span.attributes["vaeserve.rows"] for span in (queue, batch, run)] == [3, 3, 3]


async def test_spans_have_the_times_of_what_they_stand_for(two_bundles: Any) -> None:
    """The queue's end is the batch's start, all lie within the call, and a run within its batch."""
    async with traced(two_bundles[0]) as service:
        await service.stub.Score(request(), timeout=20)
        spans = service.spans()
    call, queue, batch, run = (spans[name] for name in (SERVER, "queue", "batch", "run"))
    assert queue.end_time == batch.start_time == run.start_time
    # Those of the call are taken by another clock, which ours is set by at its start.
    assert call.start_time - 1_000_000 <= queue.start_time <= queue.end_time
    assert run.start_time < run.end_time <= batch.end_time <= call.end_time + 1_000_000


async def test_each_request_of_a_stream_has_its_spans(two_bundles: Any) -> None:
    """A stream is one call; its requests' queues and batches are within it."""
    async with traced(two_bundles[0]) as service:
        answers = [answer async for answer in service.stub.ScoreStream(iter([request()] * 5), timeout=20)]
        finished = service.finished()
    assert len(answers) == 5
    names = [span.name for span in finished]
    assert [names.count(name) for name in ("queue", "batch", "run", f"{SERVICE}/ScoreStream")] == [5, 5, 5, 1]
    (call,) = (span for span in finished if span.name.endswith("ScoreStream"))
    assert call.attributes["vaeserve.rows"] == 15


@pytest.mark.parametrize(
    ("rpc", "asked", "code", "status"),
    [
        ("Score", request(bound=9), "INVALID_ARGUMENT", StatusCode.UNSET),
        ("ListModels", pb.ListModelsRequest(), "INTERNAL", StatusCode.ERROR),
    ],
)
async def test_only_what_is_the_services_fault_is_an_error(
    two_bundles: Any, rpc: str, asked: Any, code: str, status: StatusCode
) -> None:
    """A span of a call that failed has its code, and is in error where the service is."""
    async with traced(two_bundles[0]) as service:
        with pytest.raises(grpc.aio.AioRpcError):
            await getattr(service.stub, rpc)(asked, timeout=20)
        span = service.spans()[f"{SERVICE}/{rpc}"]
    assert span.attributes["rpc.response.status_code"] == code
    assert span.status.status_code is status
    assert span.attributes.get("error.type") == (code if status is StatusCode.ERROR else None)


@pytest.mark.parametrize(
    ("provider", "metadata"), [(TracerProvider(sampler=ALWAYS_OFF), ()), (TracerProvider(), (UNSAMPLED,))]
)
async def test_what_is_not_sampled_has_no_spans(two_bundles: Any, provider: TracerProvider, metadata: Any) -> None:
    """Neither where the sampler says no, nor where the caller's trace isn't kept."""
    async with traced(two_bundles[0], provider) as service:
        assert len((await service.stub.Score(request(), metadata=metadata, timeout=20)).score) == 3
        assert service.spans() == {}


@pytest.mark.parametrize(("metadata", "named"), [((), ("", "")), ((PARENT,), (TRACE, SPAN))])
def test_a_span_that_is_not_made_is_not_named(metadata: Any, named: tuple[str, str]) -> None:
    """A call that isn't sampled is logged with its caller's span, or none: one of ours would be found nowhere."""
    call = Call(SERVICE, "Score", metadata=lambda: metadata)
    Tracing(TracerProvider(sampler=ALWAYS_OFF)).begin(call)
    assert call.trace == named


class Failing(SpanProcessor):
    """A part of OpenTelemetry's that fails where it is told to."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self._fail)

    def _fail(self, *_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose")


@pytest.mark.parametrize("hook", ["on_start", "on_end"])
async def test_tracing_that_fails_ends_no_call(hook: str) -> None:
    """The call is answered, and counted as it would be without; its line is the log's."""
    provider, metrics = TracerProvider(shutdown_on_exit=False), Metrics()
    provider.add_span_processor(Failing(hook))
    observer = Observer(metrics, tracing=Tracing(provider))
    rpcs: dict[str, Method] = methods(VaeService(Repository(), most_elements=1000, stream_requests=4))
    server = grpc.aio.server()
    add_service(server, SERVICE, Service(rpcs), observer=observer)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = VaeServiceStub(channel)
        with capture_logs() as lines:
            call = stub.ListModels(pb.ListModelsRequest(), timeout=20)
            code = await call.code()
    await server.stop(None)
    assert code is grpc.StatusCode.OK
    assert [(line["event"], str(line["exc_info"])) for line in lines] == [("tracing failed", "broken on purpose")]
    seen = metrics.exposition().decode()
    assert 'vaeserve_requests_total{code="OK",model="",rpc="ListModels",version=""} 1.0' in seen
    assert "vaeserve_in_flight_requests 0.0" in seen


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What receives spans by OTLP."""

    def __init__(self) -> None:
        self.received: SimpleQueue[Any] = SimpleQueue()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - gRPC's
        """Take spans."""
        for resource in request.resource_spans:
            self.received.put(resource)
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    """A collector, and its address."""
    made = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(made, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield made, f"http://127.0.0.1:{port}"
    server.stop(None)


def test_a_service_sends_its_spans_to_a_collector(
    two_bundles: Any, tmp_path: Path, collector: tuple[Collector, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`vaeserve serve` sends by OTLP where OpenTelemetry's variables say, the last ones as it stops; logs name them."""
    receiver, address = collector
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
    repository, log = two_bundles[0].path.parent.parent, tmp_path / "log"
    options = ["--set", "tracing.enabled=true", "--set", "log.calls=all"]
    with (
        serve_locally(repository, log=log, options=options) as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        VaeServiceStub(channel).Score(request(), metadata=(PARENT,), timeout=20)
    resource = receiver.received.get(timeout=20)
    named = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
    assert named["service.name"] == "vaeserve"
    spans = {span.name: span for scope in resource.scope_spans for span in scope.spans}
    assert set(spans) == {SERVER, "queue", "batch", "run"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    (line,) = (line for line in map(json.loads, log.read_text().splitlines()) if line["event"] == "call")
    assert (line["trace_id"], line["span_id"]) == (TRACE, spans[SERVER].span_id.hex())


def test_a_collector_that_is_away_holds_up_nothing(
    two_bundles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls are answered, and the service stops within seconds; what couldn't be sent is logged as JSON."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    repository, log = two_bundles[0].path.parent.parent, tmp_path / "log"
    with (
        serve_locally(repository, log=log, options=["--set", "tracing.enabled=true"]) as service,
        grpc.insecure_channel(service.target) as channel,
    ):
        assert len(VaeServiceStub(channel).Score(request(), timeout=20).score) == 3
    assert service.process.returncode == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1]["event"] == "stopped"


def test_spans_that_nobody_takes_do_not_hold_up_the_end() -> None:
    """Where sending the last ones takes for ever, closing ends all the same."""
    never, closing = threading.Event(), threading.Event()

    class Stuck(TracerProvider):
        def shutdown(self) -> None:
            closing.set()
            never.wait()

    with Tracing(Stuck(shutdown_on_exit=False), linger_s=0.01):
        pass
    assert closing.is_set()
    never.set()


def serve_traced(*, blocked: Sequence[str] = (), **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run `vaeserve serve` with tracing, in a process that lacks some packages."""
    program = f"""
import sys
from vaeserve.cli import main
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {list(blocked)!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
main()
"""
    command = [sys.executable, "-c", program, "serve", "--repository", "none", "--set", "tracing.enabled=true"]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=os.environ | variables)


def test_tracing_without_opentelemetry_says_what_to_install() -> None:
    """It is refused at the start, with exit code 2; without tracing nobody misses it."""
    done = serve_traced(blocked=["opentelemetry"])
    assert done.returncode == 2
    assert "tracing.enabled: opentelemetry isn't installed; expected pip install 'vaeserve[otel]'" in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL: 'http/protobuf'; expected grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER: 'zipkin'; expected otlp"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "abc", "OTEL_EXPORTER_OTLP_TIMEOUT: could not convert string to float: 'abc'"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli", 'OTEL_EXPORTER_OTLP_COMPRESSION: Invalid value "brotli"'),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1", "OTEL_BSP_MAX_QUEUE_SIZE: max_queue_size must be a positive integer"),
        ("OTEL_PROPAGATORS", "nope", "OTEL_PROPAGATORS: Propagator nope not found"),
    ],
)
def test_what_opentelemetry_cannot_do_here_is_refused(variable: str, value: str, message: str) -> None:
    """A variable that asks for another exporter, or for what can't be, is refused at the start, not passed over."""
    done = serve_traced(**{variable: value})
    assert (done.returncode, message in " ".join(done.stderr.split())) == (2, True)


def test_a_missing_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only the exporter is missing, it is the one that is named."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match="tracing.enabled: opentelemetry.exporter.*isn't installed"):
        Tracing.open(TracingConfig(enabled=True))


def test_opentelemetry_is_imported_by_whom_it_is_asked_for_alone() -> None:
    """The service and its command import none of it."""
    program = "import sys, vaeserve_service.command; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]"
