"""Images that buildah builds on a base made here, and containers of them that podman runs by runc."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

from tests.deploy.network import Host

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
# As a cluster's restricted Pod Security Standard would, with a root file system that can't be written to.
RESTRICTED = (
    *("--read-only", "--read-only-tmpfs=false", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:8192"),
)
# Of pip's settings, how it reaches an index.
_PIP = ("cert", "index-url", "proxy", "trusted-host")
BUILD_S = 900
_numbers = count(1)


def output(command: Sequence[str | Path], *, timeout: float = 120) -> str:
    """Run a command to its end, and return what it printed; fail with what it said."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@dataclass(frozen=True)
class Image:
    """An image in a store."""

    name: str
    config: dict[str, Any]
    bytes: int
    layers: list[str]


@dataclass(frozen=True)
class Container:
    """A container that was started."""

    name: str
    podman: tuple[str, ...]

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a program in it."""
        command = [*self.podman, "exec", self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def healthy(self) -> bool:
        """Tell what the image's own health check says."""
        command = [*self.podman, "healthcheck", "run", self.name]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0

    def stop(self) -> int:
        """Send the image's stop signal, and return the exit code."""
        output([*self.podman, "stop", "--time", "60", self.name])
        return self.wait()

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        return int(output([*self.podman, "wait", self.name]))

    @property
    def log(self) -> str:
        """What it has said."""
        done = subprocess.run([*self.podman, "logs", self.name], capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    @property
    def process(self) -> int:
        """The id of its first process."""
        return int(output([*self.podman, "inspect", "--format", "{{.State.Pid}}", self.name]))


class Store:
    """Images of one test run, in a folder that can be removed after it."""

    def __init__(self, folder: Path) -> None:
        self._storage = folder / "storage"
        store = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"))
        self._buildah = ("buildah", *store)
        self.podman = ("podman", *store, "--runtime", "runc", "--cgroup-manager", "cgroupfs")
        self._pip_conf, self._certificates = _pip_settings(folder)
        self._make_base(folder / "base")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Some are still mounted, and what holds them on itself.
        mounted = re.findall(rf"(?m)^\S+ ({re.escape(str(self._storage))}\S*)", Path("/proc/self/mounts").read_text())
        for folder in reversed(mounted):
            output(["umount", folder])

    @property
    def base(self) -> Image:
        """What the Dockerfile starts from."""
        return self._image(BASE)

    def build(self, tag: str, *options: str, context: Path = ROOT) -> Image:
        """Build a folder's Dockerfile."""
        mounts = ("--secret", f"id=pip.conf,src={self._pip_conf}", *self._certificates)
        isolation = ("--isolation", "chroot", "--network", "host")
        form = ("--format", "docker", "--layers", "--pull-never")
        output([*self._buildah, "bud", *isolation, *mounts, *form, *options, "--tag", tag, context], timeout=BUILD_S)
        return self._image(f"localhost/{tag}")

    def command(self, image: Image, *words: str, host: Host, options: Sequence[str] = ()) -> list[str]:
        """Return a command that runs a container, restricted, on a host."""
        network = ("--network", f"ns:/run/netns/{host.namespace}")
        return [*self.podman, "run", *RESTRICTED, *network, *options, image.name, *words]

    @contextmanager
    def started(self, image: Image, *words: str, host: Host, options: Sequence[str] = ()) -> Iterator[Container]:
        """Start a container, and remove it at the end."""
        container = Container(f"started{next(_numbers)}", self.podman)
        options = ("--detach", "--name", container.name, *options)
        try:
            output(self.command(image, *words, host=host, options=options))
            yield container
        finally:
            output([*self.podman, "rm", "--force", "--ignore", "--time", "0", container.name])

    def _image(self, name: str) -> Image:
        (found,) = json.loads(output([*self.podman, "image", "inspect", name]))
        return Image(
            name, found["Config"] | {"Healthcheck": found.get("Healthcheck")}, found["Size"], found["RootFS"]["Layers"]
        )

    def _make_base(self, folder: Path) -> None:
        """Pull the base, or where no registry is reachable make one like it of Debian's packages."""
        pulled = subprocess.run([*self._buildah, "pull", "--quiet", BASE], capture_output=True, check=False)
        if pulled.returncode == 0:
            return
        packages = "python3,python3-venv,python3-pip,python-is-python3"
        output(["debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", folder], timeout=BUILD_S)
        container = output([*self._buildah, "from", "scratch"]).strip()
        output([*self._buildah, "add", "--quiet", container, folder, "/"], timeout=BUILD_S)
        output([*self._buildah, "commit", "--quiet", "--rm", container, BASE], timeout=BUILD_S)


def _pip_settings(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """Return a pip.conf that reaches the index that this machine does, and how the authorities it names are mounted."""
    listed = output([sys.executable, "-m", "pip", "config", "list"])
    settings = {key: ast.literal_eval(value) for key, value in re.findall(r"(?m)^\S*\.([\w-]+)=(.+)$", listed)}
    lines = [f"{key} = {settings[key]}" for key in _PIP if key in settings]
    path = folder / "pip.conf"
    path.write_text("\n".join(["[global]", *lines, ""]))
    mounts = ("--volume", f"{settings['cert']}:{settings['cert']}:ro") if "cert" in settings else ()
    return path, mounts
