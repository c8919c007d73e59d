"""The HTTP port: /metrics for Prometheus, /livez and /readyz for whoever can't speak gRPC."""

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from vaeserve.errors import ConfigError
from vaeserve_service.access import Access, Reason
from vaeserve_service.config import ServerConfig
from vaeserve_service.tls import Certificates

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Seconds without a request, or in the midst of a handshake, after which a connection is closed.
TIMEOUT_S = 10

Answer = tuple[int, str, bytes]


@contextmanager
def serve_http(
    config: ServerConfig,
    *,
    ready: Callable[[], bool],
    metrics: Callable[[], bytes],
    certificates: Certificates | None = None,
    access: Access | None = None,
) -> Iterator[int]:
    """Answer on the configured port, or on a free one for 0, from a thread of its own; yields the port.

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
        timeout = TIMEOUT_S

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

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in config.host else socket.AF_INET

        def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
            """Answer a connection, in its own thread: nobody waits for another's handshake."""
            if certificates is None:
                return super().finish_request(request, client_address)
            request.settimeout(TIMEOUT_S)
            with certificates.http_context().wrap_socket(request, server_side=True) as encrypted:
                return super().finish_request(encrypted, client_address)

        def handle_error(self, request: object, client_address: object) -> None:
            """Pass over what went wrong with one connection: mostly that its other end went away."""

    try:
        server = Server((config.host, config.http_port), Handler)
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


def _refusal(access: Access | None, authorization: Sequence[str]) -> Answer | None:
    """Return the answer to who may not see the metrics."""
    if access is None or access.is_open("metrics"):
        return None
    denial = access.by_token("metrics", authorization)
    if denial is None:
        return None
    return 403 if denial.reason is Reason.NO_SCOPE else 401, "text/plain", f"{denial.message}\n".encode()
