"""The server: its port, the connections that it accepts, and the routes of their calls."""

import asyncio
import socket
from functools import partial
from typing import Any

import structlog
from grpc import StatusCode

from vaeserve.errors import ConfigError
from vaeserve_service.access import Access
from vaeserve_service.call import Services
from vaeserve_service.config import ServiceConfig
from vaeserve_service.drain import Drain
from vaeserve_service.http2.exchange import Exchange, Route, Streaming, Unary
from vaeserve_service.http2.head import Head
from vaeserve_service.http2.messages import only_trailer
from vaeserve_service.http2.peer import Peer
from vaeserve_service.http2.stream import Stream
from vaeserve_service.observer import Observer
from vaeserve_service.tls import Certificates
from vaeserve_service.transport import Status, clipped

log = structlog.get_logger()

_BACKLOG = 1024
# Seconds to wait where the process has no more files for connections.
_FULL_S = 0.1


class Http2Server:
    """A server of the RPCs on asyncio's sockets, within the limits of the settings."""

    def __init__(
        self,
        services: Services,
        *,
        config: ServiceConfig,
        observer: Observer,
        drain: Drain,
        access: Access | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self._config = config
        self._access = access
        self._certificates = certificates
        self._routes = {
            (name, rpc): Route(name, rpc, method, observer.of(service), drain, config.limits.message_bytes)
            for name, service in services.items()
            for rpc, method in service.methods.items()
        }
        self._listener: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._peers: set[Peer] = set()
        self._all_gone = asyncio.Event()

    def listen(self) -> int:
        """Take the port."""
        server = self._config.server
        family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
        try:
            self._listener = socket.create_server(
                (server.host, server.grpc_port), family=family, backlog=_BACKLOG, dualstack_ipv6=server.host == "::"
            )
        except OSError:
            address = server.address(server.grpc_port)
            raise ConfigError(
                f"server.grpc_port: can't listen on {address}; expected a free port of this host"
            ) from None
        self._listener.setblocking(False)
        port: int = self._listener.getsockname()[1]
        return port

    async def start(self) -> None:
        """Answer calls."""
        self._watch()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and end once those under way have, or after so many seconds with them."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for handshake in self._handshakes:
            handshake.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        for peer in list(self._peers):
            peer.leave()
        await self._until_all_gone(grace_s)
        for peer in list(self._peers):
            peer.stop()
        await self._until_all_gone(None)

    async def _until_all_gone(self, seconds: float | None) -> None:
        self._all_gone.clear()
        if self._peers:
            try:
                async with asyncio.timeout(seconds):
                    await self._all_gone.wait()
            except TimeoutError:
                return

    def _watch(self) -> None:
        """Have connections accepted as they come."""
        if self._listener is not None:
            self._loop.add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept what connections there are, and close at once those past the limit."""
        for _ in range(_BACKLOG):
            try:
                accepted, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:  # the process may have no more files
                log.error("can't accept a connection", error=error.strerror)
                self._loop.remove_reader(listener)
                self._loop.call_later(_FULL_S, self._watch)
                return
            if len(self._peers) >= self._config.connections.limit:
                accepted.close()
            else:
                self._begin_peer(accepted)

    def _begin_peer(self, accepted: socket.socket) -> None:
        peer = Peer(self._config, accept=self._begin, on_lost=self._lost)
        self._peers.add(peer)
        handshake = self._loop.create_task(self._connect(peer, accepted))
        self._handshakes.add(handshake)
        handshake.add_done_callback(partial(self._connected, peer, accepted))

    def _connected(self, peer: Peer, accepted: socket.socket, handshake: asyncio.Task[None]) -> None:
        """Forget a client that came to nothing: who isn't who may call, who went, or who came as the service stops."""
        self._handshakes.discard(handshake)
        error = None if handshake.cancelled() else handshake.exception()
        if error is not None:
            log.debug("no connection made", error=str(error))
        if error is not None or handshake.cancelled():
            accepted.close()
            peer.connection_lost(None)  # of a task that was cancelled before it began

    async def _connect(self, peer: Peer, accepted: socket.socket) -> None:
        """Join a client to its socket, encrypted by the certificate of the moment if there is one."""
        secured: dict[str, Any] = {}
        if self._certificates is not None:
            secured["ssl"] = self._certificates.http2_context()
            secured["ssl_handshake_timeout"] = self._config.connections.handshake_s
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await self._loop.connect_accepted_socket(lambda: peer, accepted, **secured)
        except BaseException:
            peer.connection_lost(None)  # at once, for uvloop has closed the socket
            raise

    def _lost(self, lost: Peer) -> None:
        self._peers.discard(lost)
        if not self._peers:
            self._all_gone.set()

    def _begin(self, peer: Peer, stream: Stream, head: Head) -> Exchange | None:
        """Begin a call, or end it with why not."""
        route = self._routes.get((head.service, head.rpc))
        fault = head.fault or self._refusal(peer, head)
        if fault is None and route is not None:
            kind = Streaming if route.method.streaming else Unary
            return kind(stream, head, route, inflow=peer.inflow)
        unknown = Status(StatusCode.UNIMPLEMENTED, clipped(f"method: {head.service}/{head.rpc}; there is none"))
        stream.finish(only_trailer(fault or unknown))
        return None

    def _refusal(self, peer: Peer, head: Head) -> Status | None:
        """Return how a call ends whose caller may not make it."""
        denial = self._access and self._access.refusal(head.service, head.rpc, head.authorization, peer.names)
        return Status(denial.code, denial.message) if denial else None
