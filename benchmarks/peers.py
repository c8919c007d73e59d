"""The servers that are compared, each in a process of its own on loopback."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.environment import ROOT
from vaeserve.bundle import Bundle
from vaeserve.local import HOST, serve_locally

# Messages of a stream that the service reads before it has answered them.
IN_FLIGHT = 64
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Server:
    """A running server: its address, its process, and where it counts its answers, if it does."""

    name: str
    target: str
    pid: int
    metrics: str = ""

    def cpu_seconds(self) -> float:
        """Return the processor time that the process has used so far, in user and kernel."""
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        fields = stat.rpartition(")")[2].split()  # what follows the name, which may hold anything
        return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND

    def peak_kib(self) -> int:
        """Return the most memory that was resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))

    def codes(self) -> Counter[str]:
        """Return how many requests to score ended with each code; none for a server that doesn't count."""
        if not self.metrics:
            return Counter()
        with urlopen(self.metrics, timeout=10) as response:  # noqa: S310 - our own server
            families = text_string_to_metric_families(response.read().decode())
        return Counter(
            {
                sample.labels["code"]: int(sample.value)
                for family in families
                for sample in family.samples
                if sample.name == "vaeserve_requests_total" and sample.labels["rpc"] in ("Score", "ScoreStream")
            }
        )


@contextmanager
def ours(bundle: Bundle, *, log: Path, settings: Path | None = None, transport: str | None = None) -> Iterator[Server]:
    """Serve the bundle with `vaeserve serve`, as it is by default but for how much of a stream is computed at once.

    settings: a file for --config; transport: what carries the RPCs, if not the default.
    """
    options = [] if settings is None else ["--config", str(settings)]
    options += [
        "--set",
        f'repository.models=["{bundle.manifest.name}"]',
        "--set",
        f"limits.stream_requests={IN_FLIGHT}",
    ]
    if transport is not None:
        options += ["--set", f"server.transport={transport}"]
    with serve_locally(bundle.path.parent.parent, log=log, options=options) as service:
        yield Server("ours", service.target, service.process.pid, f"{service.http}/metrics")


@contextmanager
def naive(bundle: Bundle, *, log: Path, on: str = "thread") -> Iterator[Server]:
    """Serve the bundle with `benchmarks.naive`, which computes on a "thread" or on the "loop"."""
    with _module("naive", str(bundle.path.resolve()), on, log=log) as server:
        yield server


@contextmanager
def echo(transport: str, *, log: Path) -> Iterator[Server]:
    """Serve with `benchmarks.echo` on a transport, whose name it has."""
    with _module("echo", transport, log=log) as server:
        yield replace(server, name=transport)


@contextmanager
def _module(name: str, *arguments: str, log: Path) -> Iterator[Server]:
    """Run a server that prints its port."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    with (
        log.open("wb") as stderr,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True) as process,
    ):
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError(f"the {name} server didn't start: {log.read_text()}")
            yield Server(name, f"{HOST}:{port}", process.pid)
        finally:
            process.kill()
