"""The least that a server can be on each transport: it sends back what it is sent, by call and by stream.

`python -m benchmarks.echo grpcio|asyncio` prints the port that it took. The first is grpc.aio alone, on uvloop as ours.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import uvloop

from vaeserve_service.call import Call, Method, Service
from vaeserve_service.config import RepositoryConfig, ServerConfig, ServiceConfig
from vaeserve_service.drain import Drain
from vaeserve_service.http2.server import Http2Server
from vaeserve_service.metrics import Metrics
from vaeserve_service.observer import Observer

SERVICE = "vaeserve.v1.VaeService"


async def _call(content: bytes, _: Any) -> bytes:
    return content


async def _stream(_: Any, context: Any) -> None:
    """Send messages back as others are read, for which the other way about would wait a hand-over each."""
    read: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def receive() -> None:
        while isinstance(content := await context.read(), bytes):
            read.put_nowait(content)
        read.put_nowait(None)

    reader = asyncio.create_task(receive())
    while (content := await read.get()) is not None:
        await context.write(content)
    await reader


async def _messages(contents: AsyncIterator[bytes], _: Call) -> AsyncIterator[bytes]:
    async for content in contents:
        yield content


class _Raw:
    """A message that is what it is on the wire."""

    FromString = staticmethod(lambda content: content)


async def serve_grpcio() -> None:
    """Serve on a free port of loopback until killed."""
    server = grpc.aio.server()
    handlers: dict[str, Any] = {
        "Score": grpc.unary_unary_rpc_method_handler(_call),
        "ScoreStream": grpc.stream_stream_rpc_method_handler(_stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


async def serve_asyncio() -> None:
    """Serve on a free port of loopback until killed."""
    raw: Any = _Raw
    methods = {"Score": Method(raw, _call), "ScoreStream": Method(raw, _messages, streaming=True)}
    server = Http2Server(
        {SERVICE: Service(methods, observed=False)},
        config=ServiceConfig(
            repository=RepositoryConfig(path=Path()), server=ServerConfig(host="127.0.0.1", grpc_port=0)
        ),
        observer=Observer(Metrics()),
        drain=Drain(),
    )
    print(server.listen(), flush=True)
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run({"grpcio": serve_grpcio, "asyncio": serve_asyncio}[sys.argv[1]]())
