"""A rolling replacement under load: each server makes way for another at a new address, and no call is lost."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.monitored import MODEL
from tests.deploy.network import Host, Network, find, need

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
NAME = "vaeserve-headless"
PYTHON = sys.executable
# Seconds for what should take a few.
SOON_S = 120

# A server is told to stop in the moment in which it goes from DNS; lame_duck_s is what callers and Envoy then have to
# hear of it, as preStop's sleep is in Kubernetes.
DRAINING = ("drain.lame_duck_s=3", "drain.grace_s=30", "connections.age_s=2")
CUT_OFF = ("drain.lame_duck_s=0", "drain.grace_s=0", "connections.age_s=2")


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
        """Wait until it serves."""
        wait_for(lambda: bool(self._events("serving")), self.process)

    def wait_until_called(self) -> None:
        """Wait until it has answered calls."""
        wait_for(lambda: self.calls > 0, self.process)

    def _events(self, name: str) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        events = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [event for event in events if event["event"] == name]


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    """Wait until a condition holds, which the process, that has to live, brings about."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Rollout:
    """Servers under one name, of which one after another is replaced, as Kubernetes does with a surge of one."""

    def __init__(
        self, network: Network, repository: Path, *, settings: Sequence[str], folder: Path, stack: ExitStack
    ) -> None:
        """Start three; all that are started end with `stack`."""
        self._network, self._repository, self._folder, self._stack = network, repository, folder, stack
        self._settings = [word for setting in settings for word in ("--set", setting)]
        self.servers: list[Server] = []
        for _ in range(3):
            self._start()
        self._name(self.servers)

    def replace_all(self) -> None:
        """Replace each of the first three servers.

        The next makes way once the new one has calls, for which connections must age; in Kubernetes `minReadySeconds`
        is that wait.
        """
        serving = list(self.servers)
        for old in list(serving):
            serving.append(self._start())
            self._name(serving)
            serving[-1].wait_until_called()
            serving.remove(old)
            self._name(serving)
            old.process.send_signal(signal.SIGTERM)
            assert old.process.wait(SOON_S) == 0

    def _name(self, servers: Sequence[Server]) -> None:
        self._network.name(NAME, [server.host for server in servers])

    def _start(self) -> Server:
        host = self._network.add()
        log = self._folder / f"{host.address}.log"
        command: list[str | Path] = [
            *(PYTHON, "-m", "vaeserve", "serve", "--repository", str(self._repository), *self._settings),
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


@contextmanager
def balanced(network: Network, balancer: str, *, log: Path) -> Iterator[str]:
    """Yield what callers call: the servers by their name, or Envoy with the configuration of deploy/."""
    if balancer == "client":
        yield f"dns:///{NAME}:8001"
        return
    need("envoy")
    host = network.add()
    command: list[str | Path] = [find("envoy") or "", "--config-path", ROOT / "deploy" / "envoy.yaml"]
    with host.started(*command, "--concurrency", "1", "--disable-hot-restart", log=log) as process:
        target = f"{host.address}:8001"
        ask = network.gateway.command([PYTHON, "-m", "vaeserve", "health", target])
        wait_for(lambda: subprocess.run(ask, capture_output=True, check=False).returncode == 0, process)
        yield target


@contextmanager
def rehearsed(
    network: Network, repository: Path, balancer: str, *, settings: Sequence[str], folder: Path
) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Replace all servers under load; yield how many calls ended how, and how many each server has answered."""
    tally: dict[str, int] = {}
    with ExitStack() as stack:
        rollout = Rollout(network, repository, settings=settings, folder=folder, stack=stack)
        with (
            balanced(network, balancer, log=folder / "envoy.log") as target,
            calling(network.gateway, target, tally, log=folder / "callers.log"),
        ):
            for server in rollout.servers:
                server.wait_until_called()
            rollout.replace_all()
        yield tally, [server.calls for server in rollout.servers]


@pytest.mark.parametrize("balancer", ["client", "envoy"])
def test_replacing_servers_loses_no_call(network: Network, repository: Path, balancer: str, tmp_path: Path) -> None:
    """Six servers, of which never fewer than three serve, have answered each of the calls, and each some of them."""
    with rehearsed(network, repository, balancer, settings=DRAINING, folder=tmp_path) as (tally, calls):
        assert tally == {"OK": sum(calls)}
        assert len(calls) == 6
        assert all(calls)


@pytest.mark.parametrize("balancer", ["client", "envoy"])
def test_without_a_drain_calls_are_lost(network: Network, repository: Path, balancer: str, tmp_path: Path) -> None:
    """The same replacement of servers that stop at once does lose calls, so that a loss would be seen."""
    with rehearsed(network, repository, balancer, settings=CUT_OFF, folder=tmp_path) as (tally, calls):
        assert sum(tally.values()) > tally["OK"]
        assert all(calls)
