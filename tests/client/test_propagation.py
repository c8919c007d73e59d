"""The caller's trace, as a service is told of it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from opentelemetry import context, propagate, trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from vaeserve import AsyncClient, Client
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceServicer, add_VaeServiceServicer_to_server

SPAN = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, is_remote=False, trace_flags=TraceFlags(1))
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def told() -> Any:
    """Yield a service's target, and what its calls were told of traces and of who calls."""
    seen: list[tuple[list[str], list[str]]] = []

    class Telling(VaeServiceServicer):
        def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802 - the wire's name
            del request
            given = context.invocation_metadata()
            seen.append(tuple([v for k, v in given if k == name] for name in ("traceparent", "authorization")))  # type: ignore[arg-type]
            return pb.ListModelsResponse()

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        add_VaeServiceServicer_to_server(Telling(), server)  # type: ignore[abstract]
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}", seen
        server.stop(0).wait()


async def test_the_callers_trace_is_passed_on(told: Any) -> None:
    """By both clients, once, within a span; outside of one there is nothing to pass on."""
    target, seen = told
    token = context.attach(trace.set_span_in_context(NonRecordingSpan(SPAN)))
    try:
        with Client(target, token="a") as client:  # noqa: S106 - nobody's
            client.models()
        async with AsyncClient(target) as other:
            await other.models()
    finally:
        context.detach(token)
    with Client(target) as client:
        client.models()
    assert seen == [([PARENT], ["Bearer a"]), ([PARENT], []), ([], [])]


def test_what_grpc_cannot_carry_is_left_out(told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A propagator of the caller's that writes other characters than headers have costs no call; the rest is told."""
    target, seen = told

    def strange(carrier: dict[str, str]) -> None:
        carrier.update({"traceparent": PARENT, "mood": "gl\u00fccklich", "two words": "a", "lines": "a\nb"})

    monkeypatch.setattr(propagate, "inject", strange)
    with Client(target) as client:
        client.models()
    assert seen == [([PARENT], [])]


def test_opentelemetry_is_loaded_by_nobody_but_the_caller(told: Any) -> None:
    """Where the process hasn't it in use, a call doesn't load it."""
    target, seen = told
    script = (
        "import sys; from vaeserve import Client; Client(sys.argv[1]).models(); "
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, target], check=False, timeout=60)
    assert done.returncode == 0
    assert seen == [([], [])]
