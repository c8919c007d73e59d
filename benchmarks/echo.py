"""The least that a server on grpc.aio and uvloop can be: it sends back what it is sent, by call and by stream.

`python -m benchmarks.echo` prints the port that it took.
"""

import asyncio
from typing import Any

import grpc
import uvloop

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


async def serve() -> None:
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


if __name__ == "__main__":
    uvloop.run(serve())
