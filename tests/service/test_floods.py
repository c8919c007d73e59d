"""Clients that flood the gRPC port, or hold on to it: what they cost, and that others are still answered.

Each limit is shown beside a service without it, in frames and bytes that are the same on any machine; processor time
is compared with that of the other service, never with a clock. The figures are in docs/decisions/floods.md.
"""

import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.service import frames
from tests.service.frames import RawConnection
from tests.service.usage import cpu_seconds, resident_bytes
from vaeserve.local import LocalService, serve_locally
from vaeserve.tensors import to_tensor
from vaeserve.v1 import vae_pb2 as pb

MIB = 2**20
WATCH = "/grpc.health.v1.Health/Watch"
ONE_ROW = pb.ScoreRequest(
    model=pb.ModelSpec(name="table7"), inputs=[to_tensor(np.zeros((1, 7), np.float32))]
).SerializeToString()
ALL_STREAMS = ["--set", "connections.streams=2147483647"]

# A gRPC server as grpcio makes it, with a health service and none of our options.
PLAIN = """
import asyncio, grpc
from grpc_health.v1 import health, health_pb2_grpc

async def main():
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


class Server(NamedTuple):
    """A server to flood."""

    target: str
    pid: int


class Cost(NamedTuple):
    """What a flood costs a server: seconds of a processor, bytes of memory, and the frames that it answered."""

    cpu_s: float
    memory: int
    came: Counter[int]


@pytest.fixture(scope="module")
def serve(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What starts a service of one model, given further options, until its context ends."""
    folder = tmp_path_factory.mktemp("floods")
    shutil.copytree(models.bundles["table7"].path, folder / "repository" / "table7" / "1")

    @contextmanager
    def start(*options: str) -> Iterator[LocalService]:
        with serve_locally(folder / "repository", log=folder / "log", options=options) as service:
            yield service

    return start


@pytest.fixture(scope="module")
def ours(serve: Callable[..., Any]) -> Iterator[Server]:
    """A service with the default limits."""
    with serve() as service:
        yield Server(service.target, service.process.pid)


@pytest.fixture
def plain() -> Iterator[Server]:
    """A gRPC server with none of our limits."""
    with subprocess.Popen([sys.executable, "-c", PLAIN], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Server(f"127.0.0.1:{int(process.stdout.readline())}", process.pid)
        finally:
            process.kill()


@contextmanager
def unlimited(serve: Callable[..., Any], *options: str) -> Iterator[Server]:
    """Start our service without a limit."""
    with serve(*options) as service:
        yield Server(service.target, service.process.pid)


def check(channel: grpc.Channel) -> None:
    """Make a call as any client does; raises grpc.RpcError unless it is answered."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    stub.Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)


def flood(server: Server, content: Callable[[], Iterator[bytes]], *, initial_window_size: int = 65535) -> Cost:
    """Flood a server from one connection, while another's calls must be answered, and return what it costs."""
    greeting = frames.PREFACE + frames.settings(initial_window_size=initial_window_size)
    with (
        grpc.insecure_channel(server.target) as channel,
        RawConnection(server.target, greeting=greeting) as hostile,
        ThreadPoolExecutor(1) as pool,
    ):
        hostile.greet()
        check(channel)
        cpu_s, memory = cpu_seconds(server.pid), resident_bytes(server.pid)
        flooding = pool.submit(hostile.flood, content())
        while not flooding.done():
            check(channel)
        check(channel)
        cost = Cost(cpu_seconds(server.pid) - cpu_s, resident_bytes(server.pid) - memory, flooding.result())
    print(f"{cost.cpu_s:.2f} s of a processor, {cost.memory / MIB:.0f} MiB, answers {dict(cost.came)}")
    return cost


def pings(count: int) -> Iterator[bytes]:
    """Yield pings."""
    yield from [frames.frame(frames.PING, b"12345678") * 1000] * (count // 1000)


def settings(count: int) -> Iterator[bytes]:
    """Yield settings, each of which wants an acknowledgement."""
    yield from [frames.settings(initial_window_size=65535) * 1000] * (count // 1000)


def begun_calls(count: int) -> Iterator[bytes]:
    """Yield the beginnings of calls that never end."""
    for stream in range(1, 2 * count, 2):
        yield frames.headers(stream, frames.SCORE)


def reset_calls(count: int) -> Iterator[bytes]:
    """Yield calls that are taken back at once (rapid reset, CVE-2023-44487)."""
    for stream in range(1, 2 * count, 2):
        yield frames.headers(stream, frames.SCORE) + frames.rst_stream(stream)


def continuations(count: int) -> Iterator[bytes]:
    """Yield one call's header that goes on and on."""
    yield frames.headers(1, flags=0)
    field = frames.hpack([("a-field", "b" * 1000)])
    yield from [frames.frame(frames.CONTINUATION, field, stream=1)] * count
    yield frames.frame(frames.CONTINUATION, flags=frames.END_HEADERS, stream=1)


def unread_answers(count: int) -> Iterator[bytes]:
    """Yield calls with short requests and long answers, for a client that doesn't let the server send any."""
    request = pb.GenerateRequest(model=pb.ModelSpec(name="table7"), count=5000).SerializeToString()
    for stream in range(1, 2 * count, 2):
        yield frames.headers(stream, "/vaeserve.v1.VaeService/Generate")
        yield frames.data(stream, frames.message(request))


@pytest.fixture(scope="module")
def answered_s(ours: Server) -> float:
    """Processor seconds that 4,000 calls cost when they are answered."""
    with grpc.insecure_channel(ours.target) as channel:
        score: Any = channel.unary_unary(frames.SCORE)
        before = cpu_seconds(ours.pid)
        answers = [score.future(ONE_ROW, timeout=60) for _ in range(4000)]
        assert {answer.code() for answer in answers} == {grpc.StatusCode.OK}
    cpu_s = cpu_seconds(ours.pid) - before
    print(f"4,000 calls: {cpu_s:.2f} s of a processor")
    return cpu_s


def test_pings_cost_little(ours: Server, plain: Server, answered_s: float) -> None:
    """60,000 pings cost less than 4,000 calls; a server that punishes them pays many times as much, sooner or later."""
    cost = flood(ours, lambda: pings(60_000))
    assert cost.came[frames.PING] >= 60_000 or cost.came[frames.GOAWAY]
    assert cost.cpu_s < answered_s
    assert cost.memory < 32 * MIB
    # It is cheap where the connection is closed before most of the pings are there.
    while flood(plain, lambda: pings(60_000)).cpu_s < 4 * cost.cpu_s:  # until pytest's time is up
        pass


def test_settings_cost_little(ours: Server, answered_s: float) -> None:
    """60,000 settings are acknowledged, or end their connection, for less than 4,000 calls cost."""
    cost = flood(ours, lambda: settings(60_000))
    assert cost.came[frames.PING] or cost.came[frames.GOAWAY]  # the last
    assert cost.cpu_s < answered_s
    assert cost.memory < 32 * MIB


def test_calls_beyond_the_streams_are_refused_in_the_transport(ours: Server, serve: Callable[..., Any]) -> None:
    """Of 20,000 calls begun and never ended, those past the streams cost hardly anything."""
    cost = flood(ours, lambda: begun_calls(20_000))
    with unlimited(serve, *ALL_STREAMS) as server:
        control = flood(server, lambda: begun_calls(20_000))
    assert cost.came[frames.RST_STREAM] > 15_000 or cost.came[frames.GOAWAY]
    assert cost.memory < control.memory / 2
    assert cost.cpu_s < control.cpu_s


def test_to_take_calls_back_gains_nothing(ours: Server, answered_s: float) -> None:
    """20,000 calls taken back at once cost less than as many that are answered, and bounded memory."""
    cost = flood(ours, lambda: reset_calls(20_000))
    assert cost.cpu_s < 5 * answered_s
    assert cost.memory < 128 * MIB


def test_a_header_without_end_is_dropped(ours: Server, serve: Callable[..., Any]) -> None:
    """A header of 10 MB in continuations ends its call, and is not kept."""
    cost = flood(ours, lambda: continuations(10_000))
    assert cost.memory < 8 * MIB
    with unlimited(serve, "--set", "connections.metadata_bytes=16777216") as server:
        assert flood(server, lambda: continuations(10_000)).memory > 8 * MIB


def test_answers_that_nobody_reads_are_few(ours: Server, serve: Callable[..., Any]) -> None:
    """A client that asks and never lets the server send is refused once its streams are full of answers."""
    cost = flood(ours, lambda: unread_answers(2000), initial_window_size=0)
    assert cost.came[frames.RST_STREAM] > 1000
    with unlimited(serve, *ALL_STREAMS) as server:
        control = flood(server, lambda: unread_answers(2000), initial_window_size=0)
    assert control.came[frames.RST_STREAM] < 1000
    assert cost.memory < control.memory


def ends(connection: RawConnection) -> bytes:
    """Return what the last GOAWAY says, once the other end has closed, b"" if it said nothing."""
    said = [each.payload[8:] for each in connection.frames() if each.kind == frames.GOAWAY]
    return said[-1] if said else b""


def test_silent_connections_are_ended(serve: Callable[..., Any]) -> None:
    """Who says nothing, half a preface, or never acknowledges settings has the handshake's time, and no more."""
    preface = frames.PREFACE
    with serve("--set", "connections.handshake_s=0.5") as service, ExitStack() as stack:
        silent = [
            stack.enter_context(RawConnection(service.target, greeting=greeting))
            for greeting in [b"", preface[:9], preface] * 30
        ]
        rude = stack.enter_context(RawConnection(service.target))
        polite = stack.enter_context(RawConnection(service.target))
        polite.greet()
        handshake, unacknowledged = b"Did not receive HTTP/2 settings before handshake timeout", b"settings_timeout"
        assert {ends(connection) for connection in silent} <= {handshake, unacknowledged}  # whichever clock is first
        assert ends(rude) == unacknowledged
        assert polite.flood([])[frames.PING]


def test_an_idle_connection_is_ended_and_its_client_comes_back(serve: Callable[..., Any]) -> None:
    """A connection without calls is told to go; a gRPC client's next call opens another unseen."""
    with (
        serve("--set", "connections.idle_s=0.5") as service,
        RawConnection(service.target) as idle,
        grpc.insecure_channel(service.target) as channel,
    ):
        check(channel)
        idle.greet()
        assert ends(idle) == b"connection idle"
        check(channel)


def test_an_old_connection_is_ended_after_its_grace(serve: Callable[..., Any]) -> None:
    """At its age a connection is told, at the end of the grace its calls end, and other clients notice nothing."""
    with (
        serve("--set", "connections.age_s=0.5", "--set", "connections.age_grace_s=0.5") as service,
        RawConnection(service.target) as old,
        grpc.insecure_channel(service.target) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        old.greet()
        old.send(frames.headers(1, WATCH) + frames.data(1, frames.message(b"")))
        ending = pool.submit(lambda: [each.payload[8:] for each in old.frames() if each.kind == frames.GOAWAY])
        while not ending.done():
            check(channel)
        assert ending.result() == [b"max_age", b"max connection age"]


def test_a_peer_that_has_gone_silent_is_noticed(serve: Callable[..., Any]) -> None:
    """A connection with a call is asked for a sign of life; one that answers goes on, one that doesn't is ended."""
    options = ["--set", "connections.keepalive_s=0.3", "--set", "connections.keepalive_timeout_s=0.5"]
    watch = frames.headers(1, WATCH) + frames.data(1, frames.message(b""))
    with (
        serve(*options) as service,
        RawConnection(service.target) as gone,
        grpc.insecure_channel(service.target) as there,
    ):
        stub: Any = health_pb2_grpc.HealthStub(there)
        watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
        next(watching)
        gone.greet()
        gone.send(watch)
        assert ends(gone) in {b"ping_timeout", b"keepalive_timeout"}
        assert watching.is_active()


def test_connections_past_the_limit_are_closed(serve: Callable[..., Any]) -> None:
    """No more connections than the limit stay open; once one goes, another may come."""
    with serve("--set", "connections.limit=5") as service, ExitStack() as stack:
        held = [stack.enter_context(RawConnection(service.target)) for _ in range(5)]
        for connection in held:
            connection.greet()
        with RawConnection(service.target) as sixth:
            assert list(sixth.frames()) == []
        held[0].socket.close()
        with grpc.insecure_channel(service.target) as channel:
            check(channel)


@pytest.fixture
def few_files() -> Iterator[None]:
    """Processes that start may open 1000 files, and raise that themselves."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_files")
def test_the_service_may_open_what_its_connections_take(serve: Callable[..., Any]) -> None:
    """Whatever limit of open files it was started with, each connection that the settings allow can be had."""
    with serve("--set", "connections.limit=2000") as service:
        soft, _ = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
        assert soft > 2000


def test_more_connections_than_files_are_refused(tmp_path: Path) -> None:
    """Where the system lets the process have fewer files than its connections take, it says so and doesn't start."""
    serve = [sys.executable, "-m", "vaeserve", "serve", "--repository", str(tmp_path)]
    command = ["sh", "-c", 'ulimit -n 1000; exec "$@"', "sh", *serve]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "connections.limit: 1000 take 1256 open files, and the process may have 1000; expected 744" in done.stderr


def test_a_service_out_of_files_goes_on(serve: Callable[..., Any]) -> None:
    """While it may open no more files, who is connected is answered; who comes then is once it may again."""
    own = [("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel
    with serve() as service, grpc.insecure_channel(service.target, own) as known:
        check(known)
        limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (0, limits[1]))
        with grpc.insecure_channel(service.target, own) as late:
            ready = grpc.channel_ready_future(late)
            with pytest.raises(grpc.FutureTimeoutError):
                ready.result(timeout=1)
            check(known)
            resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
            check(late)
        check(known)


def test_hundreds_of_idle_connections_cost_little(ours: Server) -> None:
    """500 connections that do nothing cost megabytes, and a call beside them is answered."""
    memory = resident_bytes(ours.pid)
    with ExitStack() as stack, grpc.insecure_channel(ours.target) as channel:
        for _ in range(500):
            stack.enter_context(RawConnection(ours.target)).greet()
        check(channel)
        assert resident_bytes(ours.pid) - memory < 64 * MIB


@pytest.mark.parametrize("streams", [3, 256])
def test_a_client_with_more_calls_than_streams_waits(serve: Callable[..., Any], streams: int) -> None:
    """A client is told how many calls it may have at once, and if it keeps to that none of the others is refused."""
    with (
        serve("--set", f"connections.streams={streams}") as service,
        RawConnection(service.target) as told,
        grpc.insecure_channel(service.target) as channel,
    ):
        limit = frames.MAX_CONCURRENT_STREAMS.to_bytes(2, "big") + streams.to_bytes(4, "big")
        assert limit in told.greet().payload
        score: Any = channel.unary_unary(frames.SCORE)
        answers = [score.future(ONE_ROW, timeout=60) for _ in range(2000)]
        assert {answer.code() for answer in answers} == {grpc.StatusCode.OK}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("streams=0", "connections.streams: 0; Input should be greater than or equal to 1"),
        ("idle_s=0", "connections.idle_s: 0; Input should be greater than or equal to 0.001"),
        ("age_s=1e9", "connections.age_s: 1000000000.0; Input should be less than or equal to 1814400"),
        ("age=5", "connections.age: no such setting"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(tmp_path: Path, setting: str, message: str) -> None:
    """A wrong limit is named with what was expected, before there is a port."""
    command = [
        sys.executable,
        "-m",
        "vaeserve",
        "serve",
        "--repository",
        str(tmp_path),
        "--set",
        f"connections.{setting}",
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, message in done.stderr) == (2, True)
