"""A network of hosts on this machine: namespaces on a bridge, each with an address, and a DNS server."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

# The network has no way out of its namespaces, so that any address is free.
PREFIX = "10.77.0."
STOP_S = 60


def find(program: str) -> str | None:
    """Return where a program is, beside Python or on the path."""
    return shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def need(*programs: str) -> None:
    """Skip a test where programs or root are absent; fail it in CI."""
    absent = [program for program in programs if not find(program)]
    if not absent and os.geteuid() == 0:
        return
    word = f"needs {', '.join(absent)}" if absent else "needs root"
    if os.environ.get("CI"):
        pytest.fail(word)
    pytest.skip(word)


def ip(*words: str) -> None:
    """Run `ip`."""
    subprocess.run(["ip", *words], check=True)  # noqa: S607 - which one is the machine's to say


@dataclass(frozen=True)
class Host:
    """A namespace, its address, and the file that says where it asks for names."""

    namespace: str
    address: str
    resolver: Path

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """Return a command that runs on this host, as the process that is started."""
        mounted = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        return ["ip", "netns", "exec", self.namespace, "sh", "-c", mounted, str(self.resolver), *map(str, words)]

    def ip(self, words: str) -> None:
        """Run `ip` on this host."""
        ip("-netns", self.namespace, *words.split())

    def run(self, *words: str | Path) -> str:
        """Run a command to its end, and return what it printed."""
        done = subprocess.run(self.command(words), capture_output=True, text=True, timeout=STOP_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def started(self, *words: str | Path, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
        """Start a command, which is ended at the latest with the context; log: the file for what it prints."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.command(words), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        with process:
            try:
                yield process
            finally:
                process.kill()


class Network:
    """Hosts on one bridge; the `gateway` has the bridge, serves names, and is where callers may be."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._stack, self._numbers = stack, count(1)
        self._names, self._resolver = folder / "hosts", folder / "resolv.conf"
        self._log = folder / "dns.log"
        self._names.touch()
        self.gateway = self._host()
        self._resolver.write_text(f"nameserver {self.gateway.address}\n")
        self.gateway.ip("link add bridge type bridge")
        self.gateway.ip(f"addr add {self.gateway.address}/24 dev bridge")
        self.gateway.ip("link set bridge up")
        self._dns = self._serve_names()

    def add(self) -> Host:
        """Return another host."""
        host, bridge = self._host(), self.gateway
        end = f"host{host.address.removeprefix(PREFIX)}"
        bridge.ip(f"link add {end} type veth peer name eth0 netns {host.namespace}")
        bridge.ip(f"link set {end} master bridge up")
        host.ip(f"addr add {host.address}/24 dev eth0")
        host.ip("link set eth0 up")
        return host

    def name(self, name: str, hosts: Sequence[Host]) -> None:
        """Let a name resolve to these hosts from now on."""
        self._names.write_text("".join(f"{host.address} {name}\n" for host in hosts))
        self._dns.send_signal(signal.SIGHUP)

    def _host(self) -> Host:
        number = next(self._numbers)
        namespace = f"vaeserve-{os.getpid()}-{number}"
        ip("netns", "add", namespace)
        self._stack.callback(ip, "netns", "delete", namespace)
        host = Host(namespace, f"{PREFIX}{number}", self._resolver)
        host.ip("link set lo up")
        return host

    def _serve_names(self) -> "subprocess.Popen[bytes]":
        """Start dnsmasq, which knows the names given and no others; its answers may not be kept."""
        process = self._stack.enter_context(
            self.gateway.started(
                *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file="),
                *(
                    "--no-hosts",
                    f"--addn-hosts={self._names}",
                    "--no-resolv",
                    "--local=//",
                    "--log-queries",
                    "--log-facility=-",
                ),
                log=self._log,
            )
        )
        while "started" not in self._log.read_text():
            assert process.poll() is None, self._log.read_text()
        return process
