"""The HTTP port: /metrics for Prometheus, /livez and /readyz for whoever can't speak gRPC."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from threading import Thread
from typing import Any

from vaeserve.errors import ConfigError
from vaeserve_service.access import Access, Reason
from vaeserve_service.config import ServerConfig
from vaeserve_service.tls import Certificates

MOST_CONNECTIONS = 64
REQUEST_S = 10.0

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Answer = tuple[int, str, bytes]


@contextmanager
def serve_http(
    config: ServerConfig,
    *,
    ready: Callable[[], bool],
    metrics: Callable[[], bytes],
    certificates: Certificates | None = None,
    access: Access | None = None,
    request_s: float = REQUEST_S,
) -> Iterator[int]:
    """Answer on the configured port, or on a free one for 0, from a thread of its own; yields the port.

    request_s: seconds for a whole request, after which its connection is closed.
    Raises ConfigError for a port that is taken.
    """
    pages = ("/metrics", "/livez", "/readyz") if config.metrics else ("/livez", "/readyz")

    def answer(path: str, authorization: Sequence[str]) -> Answer:
        match path.partition("?")[0]:
            case "/metrics" if config.metrics:
                return _refusal(access, authorization) or (200, METRICS_TYPE, metrics())
            case "/livez":
                return 200, "text/plain", b"ok\n"
            case "/readyz":
                return (200, "text/plain", b"ok\n") if ready() else (503, "text/plain", b"not ready\n")
            case _:
                return 404, "text/plain", f"expected one of {', '.join(pages)}\n".encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            server.expect_request(self.connection)
            super().handle_one_request()

        def do_GET(self) -> None:
            status, content_type, body = answer(self.path, self.headers.get_all("Authorization", []))
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            """Probes and scrapes are not worth a line each."""

    try:
        server = _Server((config.host, config.http_port), Handler, certificates=certificates, request_s=request_s)
    except OSError as error:
        address = config.address(config.http_port)
        raise ConfigError(
            f"server.http_port: can't listen on {address}: {error.strerror}; expected a free port of this host"
        ) from None
    with server:
        thread = Thread(target=server.serve_forever, name="http", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    """A thread a connection, so many of them, each for so long: whoever is slow holds neither up."""

    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS  # past it the kernel lets a newcomer wait for seconds

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        *,
        certificates: Certificates | None,
        request_s: float,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._certificates = certificates
        self._request_s = request_s
        self._deadlines: dict[socket.socket, float] = {}  # the next to pass is first
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Bind, and don't ask DNS for the host's name, as http.server does: nobody may answer, and it isn't read."""
        TCPServer.server_bind(self)
        self.server_port = self.server_address[1]

    def expect_request(self, connection: socket.socket) -> None:
        """Give a connection its time for one request, from now."""
        self._deadlines.pop(connection, None)
        self._deadlines[connection] = time.monotonic() + self._request_s

    def process_request(self, request: Any, client_address: Any) -> None:
        """Let a connection in, and send those away that came or asked first if there are too many."""
        # The other way round, slow ones could keep the probes out.
        for slowest in list(self._deadlines)[: max(0, len(self._deadlines) - MOST_CONNECTIONS + 1)]:
            self._end(slowest)
        self.expect_request(request)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer a connection, in its own thread: nobody waits for another's handshake, which has its time too."""
        if self._certificates is None:
            return super().finish_request(request, client_address)
        context = self._certificates.http_context()
        with context.wrap_socket(request, server_side=True, do_handshake_on_connect=False) as encrypted:
            self._deadlines.pop(request, None)  # which has no descriptor any more
            self.expect_request(encrypted)
            try:
                encrypted.do_handshake()
                return super().finish_request(encrypted, client_address)
            finally:
                self._deadlines.pop(encrypted, None)

    def service_actions(self) -> None:
        """End the connections whose time has passed; `serve_forever` calls it twice a second."""
        now = time.monotonic()
        for connection, deadline in list(self._deadlines.items()):
            if deadline < now:
                self._end(connection)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection, and close it."""
        self._deadlines.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over what went wrong with one connection: mostly that its other end went away."""

    def _end(self, connection: socket.socket) -> None:
        """Wake the thread that waits for a connection; it finds nothing more to read, and closes it."""
        self._deadlines.pop(connection, None)
        with suppress(OSError):  # it is closed already
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # of TLS too, which would say goodbye first


def _refusal(access: Access | None, authorization: Sequence[str]) -> Answer | None:
    """Return the answer to who may not see the metrics."""
    if access is None or access.is_open("metrics"):
        return None
    denial = access.by_token("metrics", authorization)
    if denial is None:
        return None
    return 403 if denial.reason is Reason.NO_SCOPE else 401, "text/plain", f"{denial.message}\n".encode()
