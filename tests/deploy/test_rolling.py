"""A rolling replacement under load: each server makes way for another at a new address, and no call is lost."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.conftest import train_kind
from tests.deploy.network import Host, Network, need, network
from vaeserve_export.export import export

__all__ = ["network"]

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
NAME = "vaeserve-headless"
MODEL = "table3"
PYTHON = sys.executable
# Seconds for what should take a few.
SOON_S = 120

# Kubernetes takes a pod from DNS and ends it at once; these are what it has until others know.
DRAINING = ("drain.lame_duck_s=3", "drain.grace_s=30", "connections.age_s=2")
CUT_OFF = ("drain.lame_duck_s=0", "drain.grace_s=0", "connections.age_s=2")


@pytest.fixture(scope="session")
def repository(shared: Path) -> Path:
    """A repository of one small model."""
    path = shared / "rolling"
    with FileLock(shared / "rolling.lock"):
        if not path.exists():
            export(train_kind(MODEL, shared / "rolling run", steps=20), path, name=MODEL)
    return path


@dataclass(frozen=True)
class Server:
    """A service on a host of its own."""

    host: Host
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def calls(self) -> int:
        """How many calls it has answered with OK."""
        return len([event for event in self._events("call") if event["code"] == "OK"])

    def wait_until_serving(self) -> None:
        """Return once it serves."""
        wait_for(lambda: bool(self._events("serving")), self.process)

    def wait_until_called(self) -> None:
        """Return once it has answered calls."""
        wait_for(lambda: self.calls > 0, self.process)

    def _events(self, name: str) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in events if event["event"] == name]


def wait_for(condition: Any, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a condition holds, which the process, that has to live, brings about."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Rollout:
    """Servers under one name, which are replaced one after another."""

    def __init__(self, network: Network, repository: Path, folder: Path, *, settings: Sequence[str]) -> None:
        self._network, self._repository, self._folder = network, repository, folder
        self._settings = [word for setting in settings for word in ("--set", setting)]
        self._stack = ExitStack()
        self.servers: list[Server] = []

    def __enter__(self) -> "Rollout":
        for _ in range(3):
            self._start()
        self._network.name(NAME, [server.host for server in self.servers])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def replace_all(self) -> None:
        """Replace each of the first three servers, once the new one has calls."""
        serving = list(self.servers)
        for old in list(serving):
            serving.append(self._start())
            self._network.name(NAME, [server.host for server in serving])
            serving[-1].wait_until_called()
            serving.remove(old)
            self._network.name(NAME, [server.host for server in serving])
            old.process.send_signal(signal.SIGTERM)
            assert old.process.wait(SOON_S) == 0

    def _start(self) -> Server:
        host = self._network.add()
        log = self._folder / f"{host.address}.log"
        command = [
            *(PYTHON, "-m", "vaeserve", "serve", "--repository", self._repository, *self._settings),
            *("--set", "log.calls=all", "--set", "repository.poll_s=0"),
        ]
        process = self._stack.enter_context(host.started(*command, log=log))
        server = Server(host, process, log)
        server.wait_until_serving()
        self.servers.append(server)
        return server


@contextmanager
def calling(host: Host, target: str, tally: dict[str, int], *, log: Path) -> Iterator[None]:
    """Call from a host until the end of the context; then `tally` has how many calls ended how."""
    with host.started(PYTHON, "-m", "tests.deploy.callers", target, MODEL, log=log) as process:
        yield
        assert process.poll() is None, log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON_S) == 0
    tally.update(json.loads(log.read_text().splitlines()[-1]))


@pytest.fixture
def target(network: Network, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """What the callers call: the servers by their name, or Envoy."""
    if request.param == "dns":
        yield f"dns:///{NAME}:8001"
        return
    need("envoy")
    proxy = network.add()
    command = [shutil.which("envoy") or "", "--config-path", ROOT / "deploy" / "envoy.yaml"]
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "info"]
    with proxy.started(*command, *options, log=tmp_path / "envoy.log"):
        yield f"{proxy.address}:8001"


@pytest.mark.parametrize("target", ["dns", "envoy"], indirect=True)
@pytest.mark.parametrize("settings", [DRAINING, CUT_OFF], ids=["draining", "cut off"])
def test_rolling(
    network: Network, repository: Path, target: str, settings: tuple[str, ...], tmp_path: Path
) -> None:
    """x."""
    tally: dict[str, int] = {}
    with Rollout(network, repository, tmp_path, settings=settings) as rollout:
        with calling(network.gateway, target, tally, log=tmp_path / "callers.log"):
            for server in rollout.servers:
                server.wait_until_called()
            rollout.replace_all()
        calls = [server.calls for server in rollout.servers]
    print(tally, calls, sum(calls))
    print((tmp_path/"callers.log").read_text()[-3000:])
