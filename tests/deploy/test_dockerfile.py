"""What a linter doesn't see in the Dockerfile: whether it, the package and the manifests agree."""

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import vaeserve
from vaeserve.cli import app
from vaeserve.config import load, read_toml
from vaeserve_service.config import ServiceConfig

ROOT = Path(__file__).parents[2]
BASE = ROOT / "deploy" / "base"
TARGETS = ("cpu", "cuda", "jobs", "train")
# Distributions that serving and jobs have no use for, several hundred megabytes of them.
HEAVY = {"torch", "onnx", "onnxscript", "scikit-learn"}


@dataclass(frozen=True)
class Stage:
    """A stage of a Dockerfile: its name, its parent's, and its instructions in order, the parents' first."""

    name: str
    parent: str
    instructions: list[tuple[str, str]]

    def all(self, keyword: str) -> list[str]:
        """Return what follows each instruction of a kind."""
        return [arguments for name, arguments in self.instructions if name == keyword]

    def last(self, keyword: str) -> str:
        """Return what follows the last instruction of a kind, which holds."""
        return self.all(keyword)[-1]

    def words(self, keyword: str) -> list[str]:
        """Return a command in the exec form: a shell before it would keep signals to itself."""
        words: list[str] = json.loads(re.sub(r"^[^\[]*", "", self.last(keyword)))
        return words

    def named(self, keyword: str) -> dict[str, str]:
        """Return the names that ENV or LABEL gives values to."""
        pairs = re.findall(r'([\w.]+)=("[^"]*"|\S+)', " ".join(self.all(keyword)))
        return {name: value.strip('"') for name, value in pairs}


@pytest.fixture
def stages() -> dict[str, Stage]:
    """Return the stages by name, in order."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text())
    stages: dict[str, Stage] = {}
    stage = Stage("", "", [])
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        keyword, _, arguments = line.partition(" ")
        if keyword == "FROM":
            parent, _, name = arguments.partition(" AS ")
            stage = stages[name] = Stage(name, parent, [])
            if parent in stages:
                stage.instructions.extend(stages[parent].instructions)
        else:
            stage.instructions.append((keyword, arguments))
    return stages


@pytest.fixture(params=TARGETS)
def target(stages: dict[str, Stage], request: pytest.FixtureRequest) -> Stage:
    """Return each of the stages that users build."""
    return stages[request.param]


@pytest.fixture
def image(stages: dict[str, Stage]) -> Stage:
    """Return the stage that a build makes unless told otherwise."""
    return list(stages.values())[-1]


@pytest.fixture
def project() -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture
def pod() -> dict[str, Any]:
    """Return the deployment's pod."""
    spec: dict[str, Any] = yaml.safe_load((BASE / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    return spec


def parsed(words: list[str]) -> dict[str, Any]:
    """Return a command line's parameters; raises where our command line refuses it."""
    program, command, *arguments = words
    assert program == "vaeserve"
    return typer.main.get_group(app).commands[command].make_context(command, arguments).params


def requirements(project: dict[str, Any], extra: str) -> set[str]:
    """Return the names of an extra's packages, and of the extras it is made of."""
    names: set[str] = set()
    for requirement in project["project"]["optional-dependencies"][extra]:
        nested = re.match(r"vaeserve\[(.+)\]", requirement)
        if nested:
            names.update(*(requirements(project, part.strip()) for part in nested[1].split(",")))
        else:
            names.update(re.findall(r"^[\w.-]+", requirement))
    return names


def test_cpu_is_what_is_built_by_default(image: Stage) -> None:
    """A build without a target is the CPU's."""
    assert image.name == "cpu"


def test_images_start_a_command_that_is_installed(target: Stage, project: dict[str, Any]) -> None:
    """The entrypoint is a console script of the package."""
    assert target.words("ENTRYPOINT") == list(project["project"]["scripts"])


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_service_is_what_starts(stages: dict[str, Stage], name: str) -> None:
    """The default arguments are the command that serves."""
    assert stages[name].words("CMD") == ["serve"]
    parsed([*stages[name].words("ENTRYPOINT"), *stages[name].words("CMD")])


@pytest.mark.parametrize("name", ["jobs", "train"])
def test_jobs_say_what_there_is(stages: dict[str, Stage], name: str) -> None:
    """Without arguments a job prints the commands, and no health check asks it for a service."""
    assert stages[name].words("CMD") == ["--help"]
    assert not stages[name].all("HEALTHCHECK")


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_health_check_asks_the_port_that_is_served(stages: dict[str, Stage], name: str) -> None:
    """The health check is a command of ours, to the default port, and ends before the runtime ends it."""
    asked = parsed(stages[name].words("HEALTHCHECK"))
    timeout = re.search(r"--timeout=(\d+)s", stages[name].last("HEALTHCHECK"))
    assert timeout
    assert asked["target"] == f"localhost:{ServiceConfig.model_fields['server'].default.grpc_port}"
    assert asked["timeout"] < float(timeout[1])


@pytest.mark.parametrize(
    ("name", "extras", "runtime"),
    [
        ("cpu", "serve,otel", "onnxruntime"),
        ("cuda", "cuda,otel", "onnxruntime-gpu"),
        ("jobs", "jobs", "onnxruntime"),
        ("train", "export", "onnxruntime"),
    ],
)
def test_images_have_what_they_need(
    stages: dict[str, Stage], project: dict[str, Any], name: str, extras: str, runtime: str
) -> None:
    """Each installs its extras at the pinned versions, one ONNX Runtime with them, and PyTorch only where it trains."""
    run = stages[f"{name}-requirements"].last("RUN")
    assert re.search(r"install --constraint constraints\.txt '\.\[(.+)\]'$", run.strip())
    assert f"'.[{extras}]'" in run
    installed = set().union(*(requirements(project, extra) for extra in extras.split(",")))
    assert {part for part in installed if part.startswith("onnxruntime")} == {runtime}
    assert bool(installed & HEAVY) == (name == "train")


def test_images_lay_the_package_over_its_requirements(target: Stage, stages: dict[str, Stage]) -> None:
    """What changes least comes first, and stands where it was built, because scripts hold that path."""
    layers = [copy.split() for copy in target.all("COPY")]
    assert layers == [[f"--from={target.name}-requirements", "/venv", "/venv"], ["--from=package", "/venv", "/venv"]]
    assert any("venv --without-pip /venv" in run for run in stages["builder"].all("RUN"))
    assert target.named("ENV")["PATH"].split(":")[0] == "/venv/bin"
    assert stages["command"].parent == stages["builder"].parent == "base"


def test_requirements_are_installed_without_the_sources(stages: dict[str, Stage], project: dict[str, Any]) -> None:
    """The layers of requirements depend on what names them alone: a change of code or prose leaves them as they are."""
    copied = " ".join(stages["requirements"].all("COPY")).split()
    version = project["tool"]["hatch"]["version"]["path"]
    assert {word for word in copied if (ROOT / word).is_file()} == {"pyproject.toml", "constraints.txt", version}
    empty = stages["requirements"].last("RUN").removeprefix("touch ").split()
    assert empty == [project["project"]["readme"], *project["project"]["license-files"]]
    assert f"{Path(version).parent}/" in copied


def test_every_cuda_library_is_pinned() -> None:
    """The versions of ONNX Runtime for CUDA and of NVIDIA's libraries don't depend on the day of the build."""
    pinned = (ROOT / "constraints.txt").read_text()
    for name in ("onnxruntime-gpu", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-cufft", "nvidia-cuda-runtime"):
        assert re.search(rf"(?m)^{name}==[\d.]+$", pinned)


def test_index_settings_stay_out_of_the_images(stages: dict[str, Stage]) -> None:
    """Where pip installs, its settings, with whatever password is in them, are a secret of the build."""
    installing = [run for stage in stages.values() for run in stage.all("RUN") if "install " in run]
    assert installing
    assert all("--mount=type=secret,id=pip.conf,target=/etc/pip.conf" in run for run in installing)


def test_images_say_what_they_are(target: Stage) -> None:
    """The labels are OCI's, the version is the package's, and what changes with each commit comes by --label."""
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in target.named("LABEL").items()}
    assert labels.keys() == {"title", "description", "licenses", "version", "base.name"}
    assert labels["version"] == vaeserve.__version__
    assert labels["licenses"] == "Apache-2.0"


def test_context_is_what_the_wheel_is_built_of(project: dict[str, Any]) -> None:
    """.dockerignore lets in the packages' folders and the files that pyproject.toml names, and nothing else."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    packages = [package.split("/")[0] for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    files = [project["project"]["readme"], *project["project"]["license-files"], "constraints.txt", "pyproject.toml"]
    assert patterns[0] == "*"
    assert {line.removeprefix("!") for line in patterns if line.startswith("!")} == {*packages, *files}
    assert all((ROOT / name).exists() for name in (*packages, *files))


def test_images_run_as_the_deployments_user(target: Stage, pod: dict[str, Any]) -> None:
    """The user is a number that isn't root's, and the one that the deployment names."""
    security = pod["securityContext"]
    assert target.last("USER") == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert security["runAsUser"] > 0


def test_image_exposes_what_the_deployment_reaches(image: Stage, pod: dict[str, Any]) -> None:
    """The ports are the container's."""
    ports = [port["containerPort"] for port in pod["containers"][0]["ports"]]
    assert image.last("EXPOSE").split() == [str(port) for port in ports]


def test_images_stop_by_a_signal_that_drains(target: Stage) -> None:
    """The stop signal is one of the two that the service drains on."""
    assert target.last("STOPSIGNAL") in ("SIGTERM", "SIGINT")


def test_images_report_no_usage(target: Stage) -> None:
    """ONNX Runtime's telemetry is off in every process of the images, and logs aren't held back."""
    assert target.named("ENV")["ORT_DISABLE_TELEMETRY"] == "1"
    assert target.named("ENV")["PYTHONUNBUFFERED"] == "1"


def test_image_reads_the_bundles_where_they_are_mounted(
    image: Stage, pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image's own settings are accepted, and its repository is where the deployment mounts the models."""
    for name, value in image.named("ENV").items():
        monkeypatch.setenv(name, value)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert str(load(ServiceConfig).repository.path) == mounts["models"]


def test_image_overrides_no_setting_of_the_deployment(image: Stage) -> None:
    """No setting of the ConfigMap is also one of the image's variables, which would win."""
    settings = read_toml(BASE / "service.toml")
    named = {f"VAESERVE_{section}_{key}".upper() for section, keys in settings.items() for key in keys}
    assert named
    assert not named & image.named("ENV").keys()
