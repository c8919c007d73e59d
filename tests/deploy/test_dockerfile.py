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

from vaeserve.cli import app
from vaeserve.config import load, read_toml
from vaeserve_service.config import ServiceConfig

ROOT = Path(__file__).parents[2]
BASE = ROOT / "deploy" / "base"


@dataclass(frozen=True)
class Stage:
    """A stage of a Dockerfile: its name, its parent's, and its instructions in order."""

    name: str
    parent: str
    instructions: list[tuple[str, str]]

    def all(self, keyword: str) -> list[str]:
        """Return what follows each instruction of a kind."""
        return [arguments for name, arguments in self.instructions if name == keyword]

    def one(self, keyword: str) -> str:
        """Return what follows an instruction that is there once."""
        (arguments,) = self.all(keyword)
        return arguments

    def words(self, keyword: str) -> list[str]:
        """Return a command in the exec form: a shell before it would keep signals to itself."""
        words: list[str] = json.loads(re.sub(r"^[^\[]*", "", self.one(keyword)))
        return words

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the stage sets."""
        return {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', self.one("ENV"))}


@pytest.fixture
def stages() -> dict[str, Stage]:
    """Return the stages by name, in order."""
    text = re.sub(r"(?m)^\s*#.*\n", "", (ROOT / "Dockerfile").read_text())
    stages: dict[str, Stage] = {}
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        keyword, _, arguments = line.partition(" ")
        if keyword == "FROM":
            parent, _, name = arguments.partition(" AS ")
            stages[name] = Stage(name, parent, [])
        else:
            stages[name].instructions.append((keyword, arguments))
    return stages


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


def test_image_starts_a_command_that_is_installed(image: Stage, project: dict[str, Any]) -> None:
    """The entrypoint is a console script of the package, and its default arguments are a command of it."""
    assert image.words("ENTRYPOINT") == list(project["project"]["scripts"])
    assert image.words("CMD") == ["serve"]
    parsed([*image.words("ENTRYPOINT"), *image.words("CMD")])


def test_health_check_asks_the_port_that_is_served(image: Stage) -> None:
    """The health check is a command of ours, to the default port, and ends before the runtime ends it."""
    asked = parsed(image.words("HEALTHCHECK"))
    timeout = re.search(r"--timeout=(\d+)s", image.one("HEALTHCHECK"))
    assert timeout
    assert asked["target"] == f"localhost:{ServiceConfig.model_fields['server'].default.grpc_port}"
    assert asked["timeout"] < float(timeout[1])


def test_image_has_what_serving_needs_and_no_torch(stages: dict[str, Stage], project: dict[str, Any]) -> None:
    """The one extra installed is the service's, at the versions that the tests pass with, and PyTorch isn't in it."""
    installed = re.search(r"--constraint constraints\.txt '\.\[(\w+)\]'", " ".join(stages["builder"].all("RUN")))
    assert installed
    assert installed[1] == "serve"
    assert "onnxruntime" in requirements(project, "serve")
    assert not requirements(project, "serve") & {"torch", "onnx", "onnxscript", "scikit-learn"}


def test_image_takes_the_builders_environment(stages: dict[str, Stage], image: Stage) -> None:
    """The environment stands where it was built, because its scripts hold that path, and comes first on PATH."""
    source, folder, target = image.one("COPY").split()
    assert source.removeprefix("--from=") in stages
    assert folder == target
    assert any(f"venv --without-pip {folder}" in run for run in stages["builder"].all("RUN"))
    assert image.environment["PATH"].split(":")[0] == f"{folder}/bin"
    assert image.parent == stages["builder"].parent


def test_context_is_what_the_wheel_is_built_of(project: dict[str, Any]) -> None:
    """.dockerignore lets in the packages' folders and the files that pyproject.toml names, and nothing else."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    packages = [package.split("/")[0] for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    files = [project["project"]["readme"], *project["project"]["license-files"], "constraints.txt", "pyproject.toml"]
    assert patterns[0] == "*"
    assert {line.removeprefix("!") for line in patterns if line.startswith("!")} == {*packages, *files}
    assert all((ROOT / name).exists() for name in (*packages, *files))


def test_image_runs_as_the_deployments_user(image: Stage, pod: dict[str, Any]) -> None:
    """The user is a number that isn't root's, and the one that the deployment names."""
    security = pod["securityContext"]
    assert image.one("USER") == f"{security['runAsUser']}:{security['runAsGroup']}"
    assert security["runAsUser"] > 0


def test_image_exposes_what_the_deployment_reaches(image: Stage, pod: dict[str, Any]) -> None:
    """The ports are the container's."""
    ports = [port["containerPort"] for port in pod["containers"][0]["ports"]]
    assert image.one("EXPOSE").split() == [str(port) for port in ports]


def test_image_stops_by_a_signal_that_drains(image: Stage) -> None:
    """The stop signal is one of the two that the service drains on."""
    assert image.one("STOPSIGNAL") in ("SIGTERM", "SIGINT")


def test_image_reports_no_usage(image: Stage) -> None:
    """ONNX Runtime's telemetry is off in every process of the image, and logs aren't held back."""
    assert image.environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert image.environment["PYTHONUNBUFFERED"] == "1"


def test_image_reads_the_bundles_where_they_are_mounted(
    image: Stage, pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image's own settings are accepted, and its repository is where the deployment mounts the models."""
    for name, value in image.environment.items():
        monkeypatch.setenv(name, value)
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert str(load(ServiceConfig).repository.path) == mounts["models"]


def test_image_overrides_no_setting_of_the_deployment(image: Stage) -> None:
    """No setting of the ConfigMap is also one of the image's variables, which would win."""
    settings = read_toml(BASE / "service.toml")
    named = {f"VAESERVE_{section}_{key}".upper() for section, keys in settings.items() for key in keys}
    assert named
    assert not named & image.environment.keys()
