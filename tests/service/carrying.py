"""RPCs of a test, carried in its own process by either transport."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from vaeserve_service.call import Call, Method, Service
from vaeserve_service.config import RepositoryConfig, ServerConfig, ServiceConfig
from vaeserve_service.drain import Drain
from vaeserve_service.metrics import Metrics
from vaeserve_service.observer import Observer
from vaeserve_service.server import TRANSPORTS
from vaeserve_service.transport import Transport

Handler = Callable[[bytes, Call], Awaitable[bytes]]


class Raw:
    """A message that is what it is on the wire."""

    FromString = staticmethod(lambda content: content)


def raw(handle: Callable[..., Any], *, streaming: bool = False) -> Method:
    """Return a method of messages that are bytes."""
    request: Any = Raw
    return Method(request, handle, streaming=streaming)


@asynccontextmanager
async def carrying(
    transport: str, service: dict[str, Method], *, metrics: Metrics | None = None, parts: Any = None, **sections: Any
) -> AsyncIterator[tuple[Transport, int]]:
    """Carry the RPCs of the service "Test", within further settings; yields the transport and its port.

    parts: its `access` and its `certificates`.
    """
    sections.setdefault("server", ServerConfig(host="127.0.0.1", grpc_port=0))
    server = TRANSPORTS[transport](
        {"Test": Service(service)},
        config=ServiceConfig(repository=RepositoryConfig(path=Path()), **sections),
        observer=Observer(metrics or Metrics()),
        drain=Drain(),
        **(parts or {}),
    )
    port = server.listen()
    await server.start()
    try:
        yield server, port
    finally:
        await server.stop(0)
