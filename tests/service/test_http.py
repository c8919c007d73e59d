"""The HTTP port against clients that are slow on purpose."""

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from http.client import HTTPConnection

from vaeserve_service.config import ServerConfig
from vaeserve_service.http import MOST_CONNECTIONS, serve_http

BEGUN = b"GET /livez HTTP/1.1\r\nHost: a\r\n"


@contextmanager
def serving(request_s: float) -> Iterator[tuple[str, int]]:
    """Serve probes and metrics in this process."""
    config = ServerConfig(host="127.0.0.1", http_port=0)
    with serve_http(config, ready=lambda: True, metrics=lambda: b"", request_s=request_s) as port:
        yield config.host, port


def alive(address: tuple[str, int]) -> bool:
    """Tell whether the liveness probe passes."""
    with urllib.request.urlopen(f"http://{address[0]}:{address[1]}/livez", timeout=20) as response:
        return bool(response.read() == b"ok\n")


def drip(connection: socket.socket) -> None:
    """Send a header that never ends, a byte at a time, until the other end has enough of it."""
    try:
        connection.sendall(BEGUN)
        while not threading.Event().wait(0.02):
            connection.sendall(b"a")
    except OSError:
        return


def test_a_request_that_drips_is_ended() -> None:
    """A header that comes a byte at a time has the whole request's time, not its time anew with each byte."""
    with serving(0.5) as address, socket.create_connection(address) as slow:
        dripping = threading.Thread(target=drip, args=(slow,), daemon=True)
        dripping.start()
        slow.settimeout(20)
        with suppress(ConnectionResetError):
            assert slow.recv(1) == b""
        dripping.join(20)
        assert not dripping.is_alive()
        assert alive(address)


def test_a_connection_that_asks_again_in_time_lasts() -> None:
    """The time is that of a request, so that a connection may outlive it."""
    with serving(2.0) as (host, port), closing(HTTPConnection(host, port)) as patient:
        patient.connect()
        opened, started = patient.sock, time.monotonic()
        while time.monotonic() - started < 3:
            patient.request("GET", "/livez")
            assert patient.getresponse().read() == b"ok\n"
            threading.Event().wait(0.1)
        assert patient.sock is opened


def test_slow_connections_keep_nobody_out_and_hold_few_threads() -> None:
    """Of more connections than the port takes, the oldest are ended, and a probe is answered at once."""
    with serving(600) as address, ExitStack() as stack:
        before = threading.active_count()
        slow = [stack.enter_context(socket.create_connection(address)) for _ in range(3 * MOST_CONNECTIONS)]
        for connection in slow:
            connection.settimeout(20)
            connection.sendall(BEGUN)
        assert alive(address)
        for connection in slow[:MOST_CONNECTIONS]:
            assert connection.recv(1) == b""
        while threading.active_count() > before + MOST_CONNECTIONS:  # until pytest's time is up
            threading.Event().wait(0.01)


# The port opened, and every question for a name that Python asks meanwhile.
NAMES = """
import sys
sys.addaudithook(lambda event, _: print(event) if event.startswith("socket.get") else None)
from vaeserve_service.config import ServerConfig
from vaeserve_service.http import serve_http
with serve_http(ServerConfig(http_port=0), ready=lambda: True, metrics=lambda: b"") as port:
    print(port > 0)
"""


def test_the_port_opens_without_a_question_for_a_name() -> None:
    """Where no DNS server answers, a start doesn't wait for one."""
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
