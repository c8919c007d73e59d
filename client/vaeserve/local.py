"""A service on this machine, in a process of its own: for demos, tests and benchmarks."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vaeserve.errors import OperatorError

HOST = "127.0.0.1"
START_S = 60.0
STOP_S = 60.0
_POLL_S = 0.05


@dataclass(frozen=True)
class LocalService:
    """A running service: its addresses, its process, and where it logs."""

    target: str
    http: str
    process: "subprocess.Popen[bytes]"
    log: Path


@contextmanager
def serve_locally(repository: Path, *, log: Path, options: Sequence[str] = ()) -> Iterator[LocalService]:
    """Start `vaeserve serve` on free ports of loopback, wait until it serves, and stop it at the end.

    log: the file for what it logs, JSON lines. options: further arguments.
    Raises OperatorError, with what it said, if it doesn't start within a minute.
    """
    command = [
        *(sys.executable, "-m", "vaeserve", "serve", "--repository", str(repository)),
        *("--host", HOST, "--grpc-port", "0", "--http-port", "0", *options),
    ]
    with log.open("wb") as stderr, subprocess.Popen(command, stderr=stderr) as process:  # noqa: S603 - our own command
        try:
            ports = _wait_until_serving(process, log)
            yield LocalService(f"{HOST}:{ports['grpc_port']}", f"http://{HOST}:{ports['http_port']}", process, log)
        finally:
            _stop(process)


def _wait_until_serving(process: "subprocess.Popen[bytes]", log: Path) -> dict[str, int]:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            event = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
            if event.get("event") == "serving":
                return {name: event[name] for name in ("grpc_port", "http_port")}
        if process.poll() is not None:
            raise OperatorError(f"the service exited with {process.returncode}: {log.read_text().strip()}")
        time.sleep(_POLL_S)
    raise OperatorError(f"the service didn't serve within {START_S:g} s; see {log}")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
