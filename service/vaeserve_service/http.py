"""The HTTP port: /metrics for Prometheus, /livez and /readyz for whoever can't speak gRPC."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from vaeserve.errors import ConfigError
from vaeserve_service.config import ServerConfig

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Answer = tuple[int, str, bytes]


@contextmanager
def serve_http(config: ServerConfig, *, ready: Callable[[], bool], metrics: Callable[[], bytes]) -> Iterator[int]:
    """Answer on the configured port, or on a free one for 0, from a thread of its own; yields the port.

    Raises ConfigError for a port that is taken.
    """

    def answer(path: str) -> Answer:
        match path.partition("?")[0]:
            case "/metrics":
                return 200, METRICS_TYPE, metrics()
            case "/livez":
                return 200, "text/plain", b"ok\n"
            case "/readyz":
                return (200, "text/plain", b"ok\n") if ready() else (503, "text/plain", b"not ready\n")
            case _:
                return 404, "text/plain", b"expected /metrics, /livez or /readyz\n"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10  # seconds without a request after which a connection is closed

        def do_GET(self) -> None:
            status, content_type, body = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's name
            """Probes and scrapes are not worth a line each."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in config.host else socket.AF_INET

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
