"""The images, built for real and run as a cluster would run them: restricted, as nobody, with nothing to write to."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import vaeserve
from tests.deploy.containers import ROOT, Container, Image, Store, output
from tests.deploy.monitored import MODEL
from tests.deploy.network import Host, Network, need

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1200)]

USER = 65532
# What the CPU image may add to its base, in bytes.
MOST = 300_000_000
SOON_S = 120
# Python programs that stand for a tool that a cluster's operator would use.
FETCH = "import sys; from pyarrow.fs import copy_files; copy_files(*sys.argv[1:])"
SESSION = "import sys, time; from onnxruntime import InferenceSession; InferenceSession(sys.argv[1]); time.sleep(600)"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store with the base of the images."""
    need("buildah", "podman", "runc", "debootstrap")
    folder = tmp_path_factory.mktemp("images")
    with Store(folder) as store:
        yield store
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def cpu(store: Store) -> Image:
    """The image that a build makes unless told otherwise."""
    return store.build("vaeserve:0.1.0")


@pytest.fixture(scope="session")
def jobs(store: Store) -> Image:
    """The image that scores files."""
    return store.build("vaeserve:0.1.0-jobs", "--target", "jobs")


@pytest.fixture
def mounted(repository: Path) -> tuple[str, str]:
    """Mount the repository where the image looks for it."""
    return "--volume", f"{repository}:/models:ro"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file of rows for the model, alone in a folder that anyone may read."""
    path = tmp_path / "data" / "rows.csv"
    path.parent.mkdir()
    np.savetxt(path, np.random.default_rng(0).normal(size=(500, 3)), delimiter=",", header="c0,c1,c2", comments="")
    return path


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def vaeserve_from(host: Host, *words: str | Path) -> str:
    """Run a command of ours on a host, outside of any container."""
    return host.run(sys.executable, "-m", "vaeserve", *words)


def scores(path: Path) -> list[object]:
    """Return all of a file of scores."""
    found: list[object] = pq.read_table(path).to_pylist()
    return found


def score_here(rows: Path, repository: Path) -> list[object]:
    """Score rows in a process of this machine."""
    out = rows.with_name("here.parquet")
    output([sys.executable, "-m", "vaeserve", "score", rows, "--out", out, "--bundle", repository / MODEL / "1"])
    return scores(out)


def connections(record: Path) -> list[str]:
    """Return the system calls of a record that went for an address outside of the machine."""
    return [line for line in record.read_text().splitlines() if "sa_family=AF_INET" in line]


def test_cpu_image_is_small(store: Store, cpu: Image) -> None:
    """The CPU's image adds 300 MB to its base, at most."""
    print(f"{cpu.name}: {cpu.bytes / 1e6:.0f} MB, {(cpu.bytes - store.base.bytes) / 1e6:.0f} MB over its base")
    assert cpu.bytes - store.base.bytes <= MOST


def test_image_says_what_it_is(cpu: Image) -> None:
    """Registries and runtimes read what the image is, whom it runs as, how it stops and how it is."""
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in cpu.config["Labels"].items()}
    assert labels["title"] == "vaeserve"
    assert labels["version"] == vaeserve.__version__
    assert labels["licenses"] == "Apache-2.0"
    assert labels["base.name"]
    assert cpu.config["User"] == f"{USER}:{USER}"
    assert cpu.config["StopSignal"] in ("SIGTERM", "15")
    assert cpu.config["Healthcheck"]["Test"][:2] == ["CMD", "vaeserve"]


@pytest.mark.parametrize("target", ["cpu", "jobs"])
def test_images_hold_what_is_pinned_and_no_more(
    store: Store, network: Network, request: pytest.FixtureRequest, target: str
) -> None:
    """Every package has the version that the tests pass with, and neither PyTorch nor pip is among them."""
    image: Image = request.getfixturevalue(target)
    program = "from importlib.metadata import distributions as d; print(*(f'{x.name}=={x.version}' for x in d()))"
    with store.started(image, "-c", program, host=network.add(), options=("--entrypoint", "python")) as container:
        wait_for(lambda: bool(container.log))
        installed = {pin.lower().replace("_", "-") for pin in container.log.split()}
    pinned = (ROOT / "constraints.txt").read_text().lower().replace("_", "-").split()
    assert installed - set(pinned) == {f"vaeserve=={vaeserve.__version__}"}
    assert any(pin.startswith("onnxruntime==") for pin in installed)
    assert not any(pin.startswith(("torch==", "pip==")) for pin in installed)


def test_changed_sources_leave_the_requirements_layer_as_it_is(store: Store, cpu: Image, tmp_path: Path) -> None:
    """After a change of a source a node that has the image fetches the last layer alone."""
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*cache", ".venv*", ".git"))
    for name in ("service/vaeserve_service/drain.py", "README.md"):
        with (tmp_path / "source" / name).open("a") as file:
            file.write("# changed\n")
    changed = store.build("vaeserve:changed", context=tmp_path / "source")
    assert changed.layers[:-1] == cpu.layers[:-1]
    assert changed.layers[-1] != cpu.layers[-1]


def test_image_serves_restricted_and_stops_with_0(
    store: Store, cpu: Image, network: Network, repository: Path, mounted: Sequence[str], rows: Path
) -> None:
    """Read-only, without a capability and as nobody it serves others, and by its health check, the bits that it should.

    On the image's stop signal it drains and exits with 0.
    """
    host = network.add()
    with store.started(cpu, host=host, options=mounted) as container:
        wait_for(container.healthy)
        assert vaeserve_from(network.gateway, "health", f"{host.address}:8001") == "SERVING\n"
        assert serves(host, network, rows, repository)
        assert is_restricted(container)
        assert container.stop() == 0
        assert json.loads(container.log.splitlines()[-1])["event"] == "stopped"


def serves(host: Host, network: Network, rows: Path, repository: Path) -> bool:
    """Score rows by a service on a host, from outside of it, and tell whether they are the bits that they are here."""
    out = rows.with_name("there.parquet")
    where = ("--server", f"{host.address}:8001", "--model", MODEL)
    vaeserve_from(network.gateway, "score", rows, "--out", out, *where)
    return scores(out) == score_here(rows, repository)


def is_restricted(container: Container) -> bool:
    """Tell whether a container's first process is nobody's, may nothing, and has nothing to write to."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{container.process}/status").read_text().splitlines())
    denied = [container.run("python", "-c", f"open('{folder}/x', 'w')") for folder in ("", "/tmp", "/venv", "/models")]  # noqa: S108
    assert all("Read-only file system" in done.stderr for done in denied), denied
    return status["Uid"].split() == [str(USER)] * 4 and int(status["CapEff"], 16) == 0 and status["NoNewPrivs"] == "1"


def test_image_needs_no_program_but_python(
    store: Store, cpu: Image, network: Network, mounted: Sequence[str], tmp_path: Path
) -> None:
    """Without a shell or any other program of its base the image serves, is found healthy and stops with 0."""
    program = (
        "import pathlib; [path.unlink() for folder in ('/usr/bin', '/usr/sbin', '/usr/local/bin') "
        "for path in pathlib.Path(folder).iterdir() if not path.name.startswith('python')]"
    )
    (tmp_path / "Dockerfile").write_text(
        f"FROM {cpu.name}\nUSER 0\nRUN {json.dumps(['python', '-c', program])}\nUSER {USER}\n"
    )
    bare = store.build("vaeserve:bare", context=tmp_path)
    with store.started(bare, host=network.add(), options=mounted) as container:
        wait_for(container.healthy)
        assert "executable file not found" in container.run("sh", "-c", "true").stderr
        assert container.stop() == 0


def test_bundle_can_be_baked_in(store: Store, cpu: Image, network: Network, repository: Path, tmp_path: Path) -> None:
    """The Dockerfile of deploy/README.md makes an image that serves a bundle of its own."""
    found = re.search(r"```dockerfile\n(.*?)```", (ROOT / "deploy" / "README.md").read_text(), re.DOTALL)
    assert found
    (tmp_path / "Dockerfile").write_text(found[1].replace("vaeserve:0.1.0", cpu.name))
    shutil.copytree(repository, tmp_path / "models")
    baked = store.build("vaeserve:baked", context=tmp_path)
    with store.started(baked, host=network.add()) as container:
        wait_for(container.healthy)
        assert container.run("vaeserve", "health", "localhost:8001", "--name", MODEL).returncode == 0


def test_jobs_image_fetches_and_scores(
    store: Store, jobs: Image, network: Network, repository: Path, rows: Path, tmp_path: Path
) -> None:
    """It copies a bundle to an empty volume, and scores a file by it, to the bits that there are here."""
    volume, out = tmp_path / "volume", tmp_path / "out"
    for folder in (volume, out):
        folder.mkdir()
        shutil.chown(folder, USER, USER)
    shared = ("--volume", f"{repository}:/bucket:ro", "--volume", f"{rows.parent}:/data:ro")
    volumes = (*shared, "--volume", f"{volume}:/models", "--volume", f"{out}:/out")
    python = (*volumes, "--entrypoint", "python")
    host = network.add()
    finish(store, jobs, "-c", FETCH, "file:///bucket", "/models", host=host, options=python)
    words = ("score", f"/data/{rows.name}", "--bundle", f"/models/{MODEL}/1", "--out", "/out/scores.parquet")
    finish(store, jobs, *words, host=host, options=volumes)
    assert scores(out / "scores.parquet") == score_here(rows, repository)


def finish(store: Store, image: Image, *words: str, host: Host, options: Sequence[str]) -> None:
    """Run a container to its end, which is to be a good one."""
    command = store.command(image, *words, host=host, options=("--rm", *options))
    done = subprocess.run(command, capture_output=True, text=True, timeout=SOON_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_cuda_image_lacks_a_driver_alone(store: Store, network: Network, mounted: Sequence[str]) -> None:
    """It has every library but the node's driver, without which it exits with 2 and serves nobody from the CPU."""
    cuda = store.build("vaeserve:0.1.0-cuda", "--target", "cuda")
    with store.started(cuda, "serve", "--device", "cuda", host=network.add(), options=mounted) as container:
        assert container.wait() == 2
        assert "libcuda.so.1: cannot open shared object file" in container.log


def test_image_connects_to_nothing_outside(
    store: Store, cpu: Image, network: Network, mounted: Sequence[str], rows: Path, repository: Path, tmp_path: Path
) -> None:
    """From its start to its end the service asks for no name and no connection.

    In the same time ONNX Runtime, without the image's variable, does: that is seen the same way.
    """
    need("strace")
    host, beside = network.add(), network.add()
    session = ("-c", SESSION, f"/models/{MODEL}/1/encoder.onnx")
    reporting = (*mounted, "--unsetenv", "ORT_DISABLE_TELEMETRY", "--entrypoint", "python")
    record, control = tmp_path / "service", tmp_path / "control"
    with traced(store, cpu, record=record, host=host, options=mounted) as process:
        wait_for(lambda: answers(network.gateway, host))
        with traced(store, cpu, *session, record=control, host=beside, options=reporting):
            assert serves(host, network, rows, repository)
            wait_for(lambda: bool(connections(control)))
        subprocess.run([*store.podman, "kill", "--signal", "TERM", record.name], check=True)
        assert process.wait(SOON_S) == 0
    assert connections(record) == []


def answers(gateway: Host, host: Host) -> bool:
    """Tell whether there is a service on a host."""
    ask = gateway.command([sys.executable, "-m", "vaeserve", "health", f"{host.address}:8001"])
    return subprocess.run(ask, capture_output=True, check=False).returncode == 0


@contextmanager
def traced(
    store: Store, image: Image, *words: str, record: Path, host: Host, options: Sequence[str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a container whose every attempt to send something is written to a file; both have the file's name."""
    trace = ("strace", "-f", "--seccomp-bpf", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(record))
    command = store.command(image, *words, host=host, options=("--name", record.name, *options))
    with subprocess.Popen([*trace, *command], stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            output([*store.podman, "rm", "--force", "--ignore", "--time", "0", record.name])
