"""A live service that is asked everything there is to count, and a live Prometheus that scrapes it."""

import json
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import yaml

from tests.deploy.rendering import tool
from tests.service.conftest import Authority
from vaeserve.local import LocalService, serve_locally
from vaeserve.tensors import to_tensor
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub
from vaeserve_service.callers import hashed, new_token

MODEL = "table3"
# What Prometheus Operator says of a pod that it finds by a ServiceMonitor.
LABELS = {"namespace": "anomalies", "pod": "vaeserve-0", "service": "vaeserve"}
JOB = "vaeserve"
SOON_S = 60.0


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def get(self, path: str, **parameters: str) -> Any:
        """Return what its API answers."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=20) as response:  # noqa: S310 - loopback
            return json.load(response)["data"]

    def ask(self, query: str) -> dict[str, float]:
        """Return a query's values that are numbers, by their labels."""
        result = self.get("query", query=query)["result"]
        values = {json.dumps(series["metric"], sort_keys=True): float(series["value"][1]) for series in result}
        return {labels: value for labels, value in values.items() if np.isfinite(value)}


def wait_until(holds: Callable[[], object]) -> None:
    """Wait until a condition holds; fails if it doesn't within a minute."""
    deadline = time.monotonic() + SOON_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if holds():
                return
        time.sleep(0.2)
    raise AssertionError("it didn't come to hold within a minute")


@contextmanager
def observed_service(folder: Path) -> Iterator[tuple[LocalService, bytes]]:
    """Yield a service of a folder's repository, with all on that shows in metrics, and its certificate's authority."""
    authority = Authority("authority")
    authority.issue().write(folder)
    (folder / "callers.toml").write_text(f'[scorer]\nscopes = ["infer"]\ntokens = ["{hashed(new_token())}"]\n')
    settings = {
        "tls.certificate": folder / "tls.crt",
        "tls.key": folder / "tls.key",
        "access.callers": folder / "callers.toml",
        "access.anonymous": '["infer", "metrics"]',
        "limits.queue_rows": 1000,
        "repository.poll_s": 0.5,
    }
    options = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    with serve_locally(folder / "repository", log=folder / "log", options=options) as service:
        yield service, authority.pem


def score(stub: VaeServiceStub, rows: int, *, timeout: float = 20, name: str = MODEL, value: float = 0) -> None:
    """Ask for scores; whether they come doesn't matter."""
    inputs = [to_tensor(np.full((rows, 3), value, np.float32))]
    with suppress(grpc.RpcError):
        stub.Score(pb.ScoreRequest(model=pb.ModelSpec(name=name), inputs=inputs), timeout=timeout)


def flood(stub: VaeServiceStub) -> None:
    """Ask for more at once than may wait; some are refused."""
    request = pb.ScoreRequest(model=pb.ModelSpec(name=MODEL), inputs=[to_tensor(np.zeros((5000, 3), np.float32))])
    for answer in [stub.Score.future(request, timeout=20) for _ in range(16)]:
        with suppress(grpc.RpcError):
            answer.result()


def ask_everything(service: LocalService, authority: bytes) -> None:
    """Call what is answered, and what is refused for each reason."""
    credentials = grpc.ssl_channel_credentials(authority)
    with grpc.secure_channel(service.target.replace("127.0.0.1", "localhost"), credentials) as channel:
        stub = VaeServiceStub(channel)
        score(stub, 50)
        score(stub, 5, value=np.inf)
        flood(stub)
        score(stub, 3, name="absent")
        score(stub, 3, timeout=1e-4)
        refused: Any = channel.unary_unary("/vaeserve.v1.ModelAdmin/Load")
        with suppress(grpc.RpcError):
            refused(b"", timeout=20)


@contextmanager
def asking(service: LocalService, authority: bytes) -> Iterator[None]:
    """Ask everything again and again, from a thread, until the block ends."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.1):
            ask_everything(service, authority)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def prometheus_of(service: LocalService, folder: Path, rules: dict[str, Any]) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes a service, under the labels that it has in a cluster, and evaluates rules."""
    folder.mkdir()
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    scrape = {
        "job_name": JOB,
        "scheme": "https",
        "tls_config": {"insecure_skip_verify": True},
        "static_configs": [{"targets": [service.http.removeprefix("http://")], "labels": LABELS}],
    }
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        tool("prometheus"),
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stderr=log, cwd=folder) as process:
        try:
            prometheus = Prometheus(f"http://{address}")
            wait_until(lambda: prometheus.ask("up == 1"))
            yield prometheus
        finally:
            process.terminate()
