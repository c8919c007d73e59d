"""What is logged of calls, and how it is written."""

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from vaeserve.errors import InternalError, InvalidInputError, OverloadedError
from vaeserve.v1 import vae_pb2 as pb
from vaeserve_service import logs
from vaeserve_service.call import Call, Method, Service
from vaeserve_service.config import LogCalls, LogConfig
from vaeserve_service.grpc_aio import add_service
from vaeserve_service.metrics import Metrics
from vaeserve_service.observer import Observer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Leave logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


class Answers:
    """An RPC that ends as its request's model says."""

    async def handle(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        """Answer, or fail."""
        call.model, call.version, call.rows = "fraud", "3", 7
        match request.model.name:
            case "ours":
                raise InternalError("broken")
            case "defect":
                raise ZeroDivisionError("by zero")
            case "theirs":
                raise InvalidInputError("no such thing")
            case "full":
                raise OverloadedError("full")
        return pb.GetModelResponse()


async def called(*metadata: tuple[str, str], asked: str = "", calls: LogCalls = "none") -> tuple[list[Any], Any]:
    """Call a service of this process; return the lines that it logged, and the caller's error or None."""
    stream = io.StringIO()
    logs.configure(LogConfig(calls=calls), stream=stream)
    server = grpc.aio.server()
    observer = Observer(Metrics(), log_calls=calls)
    rpcs = {"Get": Method(pb.GetModelRequest, Answers().handle)}
    add_service(server, "test.Service", Service(rpcs), observer=observer)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    error = None
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        request = pb.GetModelRequest(model=pb.ModelSpec(name=asked)).SerializeToString()
        method: Any = channel.unary_unary("/test.Service/Get")
        try:
            await method(request, metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as refused:
            error = refused
    await server.stop(None)
    return [json.loads(line) for line in stream.getvalue().splitlines()], error


def id_of(error: Any) -> str:
    """Return the request id that came with an error."""
    (found,) = (value for key, value in error.trailing_metadata() if key == "x-request-id")
    return str(found)


@pytest.mark.parametrize("asked", ["ours", "defect"])
async def test_a_fault_of_ours_is_logged_with_its_request_and_trace(asked: str) -> None:
    """Its line has the stack, the caller's request id and trace; the caller gets the id back, and no stack."""
    traceparent = ("traceparent", f"00-{TRACE}-{SPAN}-01")
    lines, error = await called(traceparent, ("x-request-id", "order-7"), asked=asked)
    (line,) = lines
    assert (line["level"], line["event"], line["rpc"], line["model"]) == ("error", "internal error", "Get", "fraud")
    assert (line["request_id"], line["trace_id"], line["span_id"]) == ("order-7", TRACE, SPAN)
    assert ("ZeroDivisionError: by zero" if asked == "defect" else "InternalError: broken") in line["exception"]
    assert id_of(error) == "order-7"
    assert error.details() == "internal error; the service's log has the details"


@pytest.mark.parametrize("given", ["", "two words", "x" * 129, 'a"b\\' + " "])
async def test_a_request_without_a_usable_id_is_given_one(given: str) -> None:
    """What is no id of 1 to 128 visible characters isn't repeated; the call gets one, in log and trailer."""
    lines, error = await called(*([("x-request-id", given)] if given else []), asked="ours")
    assert re.fullmatch("[0-9a-f]{32}", lines[0]["request_id"])
    assert id_of(error) == lines[0]["request_id"]


async def test_two_ids_are_none() -> None:
    """Where a caller gives two, neither is taken."""
    lines, _ = await called(("x-request-id", "a"), ("x-request-id", "b"), asked="ours")
    assert lines[0]["request_id"] not in {"a", "b"}


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00-abc-def-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
    ],
)
async def test_what_is_no_trace_is_not_logged(traceparent: str) -> None:
    """A line has a trace only where the caller's header has one."""
    lines, _ = await called(*([("traceparent", traceparent)] if traceparent else []), asked="ours")
    assert "trace_id" not in lines[0]


@pytest.mark.parametrize(
    ("calls", "asked", "codes"),
    [
        ("none", "", []),
        ("none", "theirs", []),
        ("none", "full", []),
        ("failed", "", []),
        ("failed", "theirs", ["INVALID_ARGUMENT"]),
        ("failed", "full", ["RESOURCE_EXHAUSTED"]),
        ("all", "", ["OK"]),
        ("all", "theirs", ["INVALID_ARGUMENT"]),
    ],
)
async def test_calls_have_a_line_each_where_that_is_asked_for(calls: LogCalls, asked: str, codes: list[str]) -> None:
    """`log.calls` chooses among none, those that failed, and all; by default no caller can fill the log."""
    logged, _ = await called(asked=asked, calls=calls)
    lines = [line for line in logged if line["event"] == "call"]
    assert [line["code"] for line in lines] == codes
    for line in lines:
        assert set(line) == {
            "event", "level", "timestamp", "rpc", "model", "version", "code", "rows", "seconds", "request_id"
        }  # fmt: skip
        assert (line["model"], line["version"], line["rows"], line["seconds"] > 0) == ("fraud", "3", 7, True)


def test_libraries_lines_are_json_too() -> None:
    """What a library logs from warnings up has the form of ours, stack and all."""
    stream = io.StringIO()
    logs.configure(LogConfig(), stream=stream)
    logging.getLogger("another.package").info("too little")
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("another.package").exception("lost %s", "it")
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["event"], line["level"], line["logger"]) == ("lost it", "error", "another.package")
    assert "OSError: gone" in line["exception"]


def test_the_level_is_a_setting() -> None:
    """What is below it isn't logged."""
    stream = io.StringIO()
    logs.configure(LogConfig(level="error"), stream=stream)
    log = structlog.get_logger()
    log.warning("quiet")
    log.error("loud")
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["loud"]


def test_lines_are_text_where_a_person_asks_for_it() -> None:
    """As text they are readable; what isn't a terminal gets JSON unless told otherwise."""
    stream = io.StringIO()
    logs.configure(LogConfig(format="text"), stream=stream)
    structlog.get_logger().info("model loaded", model="fraud")
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[info +\] model loaded +model=fraud\n", stream.getvalue())


@pytest.fixture(params=["full", "gone", "closed"])
def unwritable(request: pytest.FixtureRequest) -> Iterator[None]:
    """A log that takes no line: on a full disk, to a reader who has gone, or closed."""
    reader, writer = os.pipe()
    os.close(reader)
    if request.param == "full":
        with Path("/dev/full").open("wb") as full:
            os.dup2(full.fileno(), writer)
    stream = os.fdopen(writer, "w", buffering=1)
    logs.configure(LogConfig(level="debug"), stream=stream)
    if request.param == "closed":
        stream.close()
    yield
    with contextlib.suppress(OSError):
        stream.close()


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error", "critical", "exception"])
@pytest.mark.usefixtures("unwritable")
def test_a_line_that_cannot_be_written_is_lost_and_no_more(level: str) -> None:
    """Nothing is raised to whoever logs, at any level."""
    getattr(structlog.get_logger(), level)("lost")


def test_a_service_whose_log_has_no_reader_drains(tmp_path: Path) -> None:
    """It stops as it would have, with exit code 0."""
    command = [sys.executable, "-m", "vaeserve", "serve", "--repository", str(tmp_path), "--grpc-port", "0"]
    command += ["--http-port", "0", "--set", "drain.lame_duck_s=0", "--set", 'repository.models=["awaited"]']
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert any('"serving"' in line for line in process.stderr)
        process.stderr.close()
        process.terminate()
        assert process.wait(60) == 0
