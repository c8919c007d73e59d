"""A client's connection on its socket."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from grpc import StatusCode

from vaeserve_service.config import ServiceConfig
from vaeserve_service.http2.connection import Connection
from vaeserve_service.http2.exchange import Exchange
from vaeserve_service.http2.frames import Code
from vaeserve_service.http2.head import Head, read_head
from vaeserve_service.http2.inflow import Inflow
from vaeserve_service.http2.lifetime import Lifetime
from vaeserve_service.http2.stream import Stream
from vaeserve_service.tls import ALPN
from vaeserve_service.transport import Status

# Bytes that are written at once within a turn of the loop: whether the socket takes more must be heard in time.
_TURN = 65_536
# Kinds of a certificate's alternative names that are a caller's.
_NAMES = frozenset({"DNS", "URI", "email", "IP Address"})
# Seconds in which the last of what a client is told must be taken from the socket.
_CLOSE_S = 2.0
_STOPPING = Status(StatusCode.UNAVAILABLE, "the service is stopping")


class Peer(asyncio.Protocol):
    """A client's connection on its socket.

    names: those of the certificate that the client showed.
    accept: is given each call, and returns what takes it on, if it isn't refused.
    on_lost: is called once the connection is gone.
    """

    def __init__(
        self,
        config: ServiceConfig,
        *,
        accept: "Callable[[Peer, Stream, Head], Exchange | None]",
        on_lost: "Callable[[Peer], None]",
    ) -> None:
        self.names: Sequence[bytes] = ()
        self.inflow = Inflow(config.limits.message_bytes)
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._written: list[bytes] = []
        self._size = 0
        self._connection: Connection[Head] = Connection(
            most_streams=config.connections.streams,
            metadata_bytes=config.connections.metadata_bytes,
            read=partial(read_head, most_bytes=config.connections.metadata_bytes),
            accept=partial(accept, self),
            write=self._write,
            on_over=self._close,
        )
        self._lifetime = Lifetime(self._connection, config.connections)
        self._clock: asyncio.TimerHandle | None = None
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, as the socket is there, and encrypted if it is to be."""
        self._transport = transport
        secured = transport.get_extra_info("ssl_object")
        if secured is not None and secured.selected_alpn_protocol() != ALPN:
            self._connection.end(Code.PROTOCOL_ERROR, f"TLS without ALPN; expected {ALPN}")
            return
        self.names = _names(transport.get_extra_info("peercert"))
        self._flush()
        self._look()

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._lifetime.heard = time.monotonic()
        self._connection.receive(data)

    def pause_writing(self) -> None:
        """Send nothing for now."""
        self._connection.outflow.pause()

    def resume_writing(self) -> None:
        """Send on."""
        self._connection.outflow.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what was under way, as the socket is gone."""
        del exc
        self._transport = None  # what is still to be written has nowhere to go
        self._connection.lose()
        if self._clock is not None:
            self._clock.cancel()
        self._on_lost(self)

    def leave(self) -> None:
        """Take no more calls, and end once those under way have."""
        if not self._connection.is_over:
            self._connection.leave(_STOPPING.message)
            self._look()

    def stop(self) -> None:
        """End the calls that are still under way, and the connection."""
        for stream in list(self._connection.streams.values()):
            if isinstance(stream.receiver, Exchange):
                stream.receiver.refuse(_STOPPING)
        self._connection.end(Code.NO_ERROR, _STOPPING.message)

    def abort(self) -> None:
        """Close the socket whether or not what was written is taken."""
        if self._transport is not None:
            self._transport.abort()

    def _write(self, content: bytes) -> None:
        """Write what there is in this turn of the loop at once."""
        if not self._written:
            self._loop.call_soon(self._flush)
        self._written.append(content)
        self._size += len(content)
        if self._size >= _TURN:
            self._flush()

    def _flush(self) -> None:
        if self._written and self._transport is not None:
            written, self._written, self._size = b"".join(self._written), [], 0
            self._transport.write(written)

    def _look(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
        delay = self._lifetime.look()
        if not self._connection.is_over:
            self._clock = self._loop.call_later(delay, self._look)

    def _close(self) -> None:
        """Close the socket once all is written, or soon after if it isn't taken."""
        if self._transport is None:
            return
        self._flush()
        self._transport.close()
        if self._clock is not None:
            self._clock.cancel()
        self._clock = self._loop.call_later(_CLOSE_S, self.abort)


def _names(certificate: "dict[str, Any] | None") -> list[bytes]:
    """Return the names of a certificate: its alternative ones, or where it has none its common one, as gRPC does."""
    if not certificate:
        return []
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in _NAMES]
    common = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return [name.encode() for name in names or common]
