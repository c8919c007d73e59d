"""Calls of gRPC's own client to the asyncio transport, and what becomes of them as it stops."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service import frames
from tests.service.carrying import carrying, raw
from tests.service.frames import RawConnection
from vaeserve.errors import ConfigError, InvalidInputError, OverloadedError
from vaeserve_service.access import Access
from vaeserve_service.call import Call
from vaeserve_service.config import AccessConfig, ConnectionsConfig, LimitsConfig, ServerConfig, TlsConfig
from vaeserve_service.http2.server import Http2Server
from vaeserve_service.tls import Certificates

MIB = 2**20
OK = grpc.StatusCode.OK
# A subchannel of its own, so that a connection is never an earlier test's.
ALONE = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


class Handlers:
    """RPCs that echo, fail, wait and stream, and what they saw."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.cancelled = 0
        self.let = asyncio.Event()

    async def echo(self, content: bytes, call: Call) -> bytes:
        """Answer with what was asked."""
        self.calls.append(call)
        return content

    async def fail(self, content: bytes, _: Call) -> bytes:
        """Fail as asked."""
        match content:
            case b"theirs":
                raise InvalidInputError("a 100 % ünknown \n thing")
            case b"full":
                raise OverloadedError("full")
            case b"cancelled":
                raise asyncio.CancelledError
        raise ZeroDivisionError("by zero")

    async def wait(self, content: bytes, call: Call) -> bytes:
        """Answer once that is let."""
        self.calls.append(call)
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return content

    async def repeat(self, contents: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Answer each request with itself."""
        self.calls.append(call)
        async for content in contents:
            yield content

    async def first(self, contents: AsyncIterator[bytes], _: Call) -> AsyncIterator[bytes]:
        """Answer the first request, and be done."""
        async for content in contents:
            yield content
            return

    async def many(self, contents: AsyncIterator[bytes], call: Call) -> AsyncIterator[bytes]:
        """Answer without end."""
        async for content in contents:
            while True:
                call.rows += 1
                self.calls = [call]
                yield content

    @asynccontextmanager
    async def serving(self, **given: Any) -> AsyncIterator[tuple[Http2Server, int]]:
        """Carry them."""
        rpcs = {name: raw(getattr(self, name)) for name in ("echo", "fail", "wait")}
        rpcs |= {name: raw(getattr(self, name), streaming=True) for name in ("repeat", "first", "many")}
        async with carrying("asyncio", rpcs, **given) as (server, port):
            assert isinstance(server, Http2Server)
            yield server, port

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait, until pytest's time is up, for what should come to be."""
        while not true():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def calling(**given: Any) -> AsyncIterator[tuple[Handlers, Any]]:
    """Serve, and connect gRPC's client to it."""
    handlers = Handlers()
    async with (
        handlers.serving(**given) as (_, port),
        connected(port) as channel,
    ):
        yield handlers, channel


def connected(port: int) -> Any:
    """Return gRPC's client, of messages that are bytes."""
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=ALONE)


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    """Return how a call ends, and what it says."""
    return await call.code(), await call.details()


async def test_a_call_is_answered_with_what_its_caller_said_beside_it() -> None:
    """Messages of no bytes and of many come whole, and the handler sees text and bytes of the metadata."""
    async with calling() as (handlers, channel):
        echo = channel.unary_unary("/Test/echo")
        for content in (b"", b"1", b"large" * MIB):
            assert await echo(content, timeout=20) == content
        await echo(b"", metadata=(("who", "me"), ("trace-bin", b"\0\xff")), timeout=20)
    seen = dict(handlers.calls[-1].metadata())
    assert (seen["who"], seen["trace-bin"]) == ("me", b"\0\xff")
    assert not {"te", "content-type", "grpc-timeout"} & set(seen)


async def test_a_call_ends_with_what_its_handler_raised() -> None:
    """Ours are told as they are, a full queue also says when to come back, a defect is told in a word."""
    async with calling() as (_, channel):
        fail = channel.unary_unary("/Test/fail")
        assert await ended(fail(b"theirs", timeout=20)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "a 100 % ünknown \n thing",
        )
        full = fail(b"full", timeout=20)
        assert await ended(full) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
        trailers = dict(await full.trailing_metadata())
        assert trailers["grpc-retry-pushback-ms"] == "100"
        assert isinstance(trailers["grpc-status-details-bin"], bytes)
        code, said = await ended(fail(b"defect", timeout=20))
        assert (code, "zero" in said) == (grpc.StatusCode.INTERNAL, False)


async def test_a_handler_that_ends_as_cancelled_leaves_nobody_waiting() -> None:
    """Its caller hears so at once, where grpcio would leave it until its deadline."""
    async with calling() as (_, channel):
        code, _ = await ended(channel.unary_unary("/Test/fail")(b"cancelled", timeout=60))
        assert code is grpc.StatusCode.CANCELLED


async def test_a_call_past_its_deadline_is_cancelled_here_too() -> None:
    """The caller hears of it, and the handler, whichever end's clock is the first to tell."""
    async with calling() as (handlers, channel):
        code, _ = await ended(channel.unary_unary("/Test/wait")(b"", timeout=0.2))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        await handlers.until(lambda: handlers.cancelled == 1)


async def test_a_call_that_is_taken_back_is_cancelled_here() -> None:
    """What a caller cancels, and what is under way as its connection goes, is no longer worked on."""
    async with calling() as (handlers, channel):
        wait = channel.unary_unary("/Test/wait")
        call = wait(b"")
        await handlers.until(lambda: len(handlers.calls) == 1)
        call.cancel()
        await handlers.until(lambda: handlers.cancelled == 1)
        lost = wait(b"")
        await handlers.until(lambda: len(handlers.calls) == 2)
        await channel.close()
        await handlers.until(lambda: handlers.cancelled == 2)
        with suppress(asyncio.CancelledError):
            await lost
    assert handlers.cancelled == 2


async def test_a_stream_is_answered_as_it_goes_and_in_order() -> None:
    """Requests and answers pass each other, and the end of the one is the end of the other."""
    async with calling() as (_, channel):
        stream = channel.stream_stream("/Test/repeat")(timeout=60)
        for number in range(100):
            await stream.write(b"%d" % number)
            assert await stream.read() == b"%d" % number
        sent = [bytes([number]) * 3000 for number in range(200)]
        for content in sent:
            await stream.write(content)
        await stream.done_writing()
        assert [await stream.read() for _ in sent] == sent
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is OK


async def test_an_answer_may_end_before_its_requests() -> None:
    """A caller that still writes hears OK, and its connection goes on."""
    async with calling() as (_, channel):
        stream = channel.stream_stream("/Test/first")(timeout=60)
        await stream.write(b"first")
        assert await stream.read() == b"first"
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is OK
        assert await channel.unary_unary("/Test/echo")(b"next", timeout=20) == b"next"


async def test_who_does_not_read_stops_who_writes() -> None:
    """Answers without end wait for their caller, in bounded numbers."""
    async with calling() as (handlers, channel):
        stream = channel.stream_stream("/Test/many")(timeout=60)
        await stream.write(bytes(MIB))
        assert await stream.read() == bytes(MIB)
        made = 0
        while handlers.calls[0].rows > made:  # until it stands still
            made = handlers.calls[0].rows
            await asyncio.sleep(0.2)
        assert made < 100
        for _ in range(50):
            assert await stream.read() == bytes(MIB)
        assert handlers.calls[0].rows > made
        stream.cancel()


async def test_compressed_requests_are_read() -> None:
    """Gzip and deflate, as a client may choose, and not past the limit of a message."""
    limits = LimitsConfig(message_bytes=MIB)
    async with calling(limits=limits) as (_, channel):
        echo = channel.unary_unary("/Test/echo")
        for way in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            assert await echo(bytes(1000), compression=way, timeout=20) == bytes(1000)
            code, said = await ended(echo(bytes(MIB + 1), compression=way, timeout=20))
            assert (code, "larger than max" in said) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)


async def test_what_there_is_not_says_so() -> None:
    """An unknown method and an unknown service are UNIMPLEMENTED, and named."""
    async with calling() as (_, channel):
        for method in ("/Test/Train", "/Other/echo"):
            code, said = await ended(channel.unary_unary(method)(b"", timeout=20))
            assert (code, method[1:] in said) == (grpc.StatusCode.UNIMPLEMENTED, True)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 3 * MIB), min_size=1, max_size=8), streamed=st.booleans())
def test_messages_of_any_size_come_whole(sizes: list[int], streamed: bool) -> None:
    """Whatever windows they need, alone and beside each other."""

    async def check() -> None:
        async with calling() as (_, channel):
            if streamed:
                stream = channel.stream_stream("/Test/repeat")((bytes(size) for size in sizes), timeout=60)
                assert [len(content) async for content in stream] == sizes
            else:
                echo = channel.unary_unary("/Test/echo")
                answers = await asyncio.gather(*(echo(bytes(size), timeout=60) for size in sizes))
                assert [len(content) for content in answers] == sizes

    asyncio.run(check())


async def test_a_stopping_server_answers_what_is_under_way() -> None:
    """No new connection is taken, calls under way have the grace, and an idle connection doesn't hold the stop."""
    handlers = Handlers()
    async with handlers.serving() as (server, port), connected(port) as channel:
        with RawConnection(f"127.0.0.1:{port}") as idle:
            await asyncio.to_thread(idle.greet)
            call = channel.unary_unary("/Test/wait")(b"late")
            await handlers.until(lambda: len(handlers.calls) == 1)
            stopping = asyncio.create_task(server.stop(3600))
            said = await asyncio.to_thread(lambda: [each.kind for each in idle.frames()])
            assert frames.GOAWAY in said
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), timeout=5)
            assert not stopping.done()
            handlers.let.set()
            assert await call == b"late"
            await stopping


async def test_a_call_past_the_grace_ends_as_unavailable() -> None:
    """Its caller may try again elsewhere, and its handler is cancelled."""
    handlers = Handlers()
    async with handlers.serving() as (server, port), connected(port) as channel:
        call = channel.unary_unary("/Test/wait")(b"")
        await handlers.until(lambda: len(handlers.calls) == 1)
        await server.stop(0.1)
        assert await ended(call) == (grpc.StatusCode.UNAVAILABLE, "the service is stopping")
        assert handlers.cancelled == 1


def test_a_stop_as_clients_come_raises_nothing() -> None:
    """Whoever has just connected, and already asks, is left without a word in the log, on uvloop too."""
    raised: list[dict[str, Any]] = []

    async def stop() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        for _ in range(30):
            async with Handlers().serving() as (server, port):
                coming = [asyncio.create_task(asyncio.open_connection("127.0.0.1", port)) for _ in range(8)]
                for task in coming:
                    _, writer = await task
                    writer.write(frames.PREFACE + frames.settings() + frames.headers(1, "/Test/echo"))
                await server.stop(0)
                for task in coming:
                    task.result()[1].close()

    uvloop.run(stop())
    assert raised == []


async def test_no_call_is_lost_as_connections_grow_old() -> None:
    """Connections that end every few moments take their callers' calls to the next one unseen."""
    connections = ConnectionsConfig(age_s=0.05, age_grace_s=20)
    async with calling(connections=connections) as (_, channel):
        echo = channel.unary_unary("/Test/echo")
        for _ in range(40):
            answers = await asyncio.gather(*(echo(b"%d" % n, timeout=20) for n in range(50)))
            assert answers == [b"%d" % n for n in range(50)]


async def test_connections_past_the_limit_are_closed() -> None:
    """Those within it stay, and one that goes makes room."""
    handlers = Handlers()
    async with handlers.serving(connections=ConnectionsConfig(limit=2)) as (_, port):
        with RawConnection(f"127.0.0.1:{port}") as first, RawConnection(f"127.0.0.1:{port}") as second:
            await asyncio.to_thread(first.greet)
            await asyncio.to_thread(second.greet)
            with RawConnection(f"127.0.0.1:{port}") as third:
                assert await asyncio.to_thread(lambda: list(third.frames())) == []
        async with connected(port) as channel:
            assert await channel.unary_unary("/Test/echo")(b"1", timeout=20, wait_for_ready=True) == b"1"


async def test_a_port_that_is_taken_is_refused() -> None:
    """With the setting, the address and what was expected."""
    handlers = Handlers()
    async with handlers.serving() as (_, port):
        taken = ServerConfig(host="127.0.0.1", grpc_port=port)
        with pytest.raises(ConfigError, match=rf"server.grpc_port: can't listen on 127.0.0.1:{port}; expected a free"):
            async with handlers.serving(server=taken):
                pass


async def test_tls_takes_http2_to_be_agreed_on(tmp_path: Path, authority: Any) -> None:
    """A client that agrees on no protocol, or on another, is sent away without a call."""
    authority.issue().write(tmp_path)
    config = TlsConfig(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key")
    context = ssl.create_default_context(cadata=authority.pem.decode())

    def greeted(port: int) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", port), 20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            secured.sendall(frames.PREFACE + frames.settings())
            received = b""
            with suppress(OSError):
                while more := secured.recv(1 << 16):
                    received += more
            return received

    async with Handlers().serving(parts={"certificates": Certificates.open(config)}) as (_, port):
        assert b"TLS without ALPN" in await asyncio.to_thread(greeted, port)
        context.set_alpn_protocols(["http/1.1"])
        assert b"TLS without ALPN" in await asyncio.to_thread(greeted, port)


@pytest.mark.parametrize(("dns", "uris"), [(["job.example"], []), ([], ["spiffe://prod/job"]), ([], [])])
async def test_a_caller_is_known_by_its_certificate(
    tmp_path: Path, authority: Any, dns: list[str], uris: list[str]
) -> None:
    """By a name among its alternative ones, or where it has none by its common one; others may not call."""
    authority.issue().write(tmp_path)
    (tmp_path / "ca.crt").write_bytes(authority.pem)
    (tmp_path / "callers.toml").write_text(
        '[job]\nscopes = ["admin"]\ncertificates = ["job.example", "spiffe://prod/job", "common"]\n'
    )
    tls = TlsConfig(certificate=tmp_path / "tls.crt", key=tmp_path / "tls.key", client_ca=tmp_path / "ca.crt")
    access = Access.open(AccessConfig(callers=tmp_path / "callers.toml"), tls=tls, on_denied=lambda *_: None)
    parts = {"certificates": Certificates.open(tls), "access": access}
    codes = []
    async with Handlers().serving(parts=parts) as (_, port):
        for client in (authority.issue("common", dns=dns, uris=uris), authority.issue("stranger", dns=["other"])):
            credentials = grpc.ssl_channel_credentials(authority.pem, client.key, client.chain)
            channel: Any = grpc.aio.secure_channel(f"localhost:{port}", credentials, options=ALONE)
            async with channel:
                codes.append((await ended(channel.unary_unary("/Test/echo")(b"", timeout=20)))[0])
    assert codes == [OK, grpc.StatusCode.UNAUTHENTICATED]
