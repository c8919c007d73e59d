"""Every pod's container run on this machine: its command, settings and probes, on folders in place of volumes."""

import http.client
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray

from tests.deploy.monitored import MODEL
from tests.deploy.pods import Pod, pods
from tests.deploy.rendering import Manifest, of_kind
from tests.deploy.wiring import PROBES
from tests.service.conftest import Authority
from vaeserve.bundle import Bundle
from vaeserve.client import Client
from vaeserve.errors import NotFoundError
from vaeserve.local import LocalService, serve_locally
from vaeserve_service.callers import hashed, new_token

pytestmark = pytest.mark.deploy

Rendered = Callable[[str], list[Manifest]]
Container = dict[str, Any]

MODELS = ("/models", "/mnt/models")
SETTINGS = ("base", "cpu", "kserve", "everything")
TOKEN = new_token()


def pod_of(manifests: list[Manifest], kind: str) -> Pod:
    """Return the pod of the one manifest of a kind."""
    (found,) = [pod for pod in pods(manifests) if pod.owner["kind"] == kind]
    return found


def folders(tmp_path: Path, manifests: list[Manifest], repository: Path) -> dict[str, Path]:
    """Return what is mounted where: the models, and folders with the settings and the secrets of a pod."""
    made = dict.fromkeys(MODELS, repository)
    for name in ("/etc/vaeserve", "/run/secrets/vaeserve/tls", "/run/secrets/vaeserve/access", "/data", "/tmp"):  # noqa: S108
        made[name] = tmp_path / name.strip("/")
        made[name].mkdir(parents=True)
    for config in of_kind(manifests, "ConfigMap"):
        for name, text in config["data"].items():
            (made["/etc/vaeserve"] / name).write_text(text)
    Authority("authority").issue().write(made["/run/secrets/vaeserve/tls"])
    (made["/run/secrets/vaeserve/access"] / "callers.toml").write_text(
        f'[scorer]\nscopes = ["infer"]\ntokens = ["{hashed(TOKEN)}"]\n'
    )
    return made


def placed(text: str, mounts: Mapping[str, Path]) -> str:
    """Return a text with the paths of mounts replaced by where those are here."""
    paths = "|".join(sorted(map(re.escape, mounts), key=len, reverse=True))
    return re.sub(rf"(?<![\w/])({paths})(?=/|$)", lambda found: str(mounts[found[1]]), text)


def words(container: Container, variables: Mapping[str, str], mounts: Mapping[str, Path]) -> list[str]:
    """Return a container's arguments, as Kubernetes and the mounts make them."""
    here = [placed(word, mounts) for word in container["args"]]
    return [re.sub(r"\$\((\w+)\)", lambda found: variables[found[1]], word) for word in here]


@contextmanager
def started(
    pod: Pod, mounts: Mapping[str, Path], log: Path, patch: pytest.MonkeyPatch
) -> Iterator[tuple[LocalService, Container]]:
    """Run a service's container on free ports."""
    (container,) = pod.spec["containers"]
    for variable in container.get("env", []):
        patch.setenv(variable["name"], placed(variable["value"].replace("fraud", MODEL), mounts))
    command, *options = words(container, {}, mounts)
    assert command == "serve"
    with serve_locally(mounts["/models"], log=log, options=options) as service:
        yield service, container


def probe(service: LocalService, container: Container, way: Mapping[str, Any]) -> bool:
    """Return what a kubelet finds: it asks the health service for a name, or a page without checking certificates."""
    numbers = {port["name"]: port["containerPort"] for port in container["ports"]}
    here = {8001: service.target, 8002: service.http.removeprefix("http://")}
    if "grpc" in way:
        with Client(here[way["grpc"]["port"]]) as client:
            try:
                return client.health(way["grpc"].get("service", ""))
            except NotFoundError:
                return False
    page = way["httpGet"]
    assert page["scheme"] == "HTTPS"
    context = ssl._create_unverified_context()  # noqa: S323 - as the kubelet
    connection = http.client.HTTPSConnection(here[numbers[page["port"]]], timeout=20, context=context)
    connection.request("GET", page["path"])
    status = connection.getresponse().status
    connection.close()
    return status == 200


@pytest.mark.parametrize("name", SETTINGS)
def test_probes_find_what_the_service_registers(
    rendered: Rendered, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The pod's own command and settings start a service, and each of its probes finds it well."""
    manifests = rendered(name)
    pod = pod_of(manifests, "ServingRuntime" if name == "kserve" else "Deployment")
    mounts = folders(tmp_path, manifests, repository)
    with started(pod, mounts, tmp_path / "log", monkeypatch) as (service, container):
        for kind in PROBES:
            if kind in container:
                assert probe(service, container, container[kind]) is True


def test_a_probe_of_a_name_that_isnt_registered_fails(
    rendered: Rendered, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the liveness name misspelt, the pod would never start."""
    manifests = rendered("base")
    mounts = folders(tmp_path, manifests, repository)
    with started(pod_of(manifests, "Deployment"), mounts, tmp_path / "log", monkeypatch) as (service, container):
        assert probe(service, container, {"grpc": {"port": 8001, "service": "livenes"}}) is False


def test_the_route_leads_to_services_that_are_served(
    rendered: Rendered, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every service of the GRPCRoute is one that the pod's reflection names, and the admin's isn't among them."""
    (route,) = of_kind(rendered("everything"), "GRPCRoute")
    routed = {match["method"]["service"] for rule in route["spec"]["rules"] for match in rule["matches"]}
    manifests = rendered("base")
    mounts = folders(tmp_path, manifests, repository)
    with (
        started(pod_of(manifests, "Deployment"), mounts, tmp_path / "log", monkeypatch) as (service, _),
        grpc.insecure_channel(service.target) as channel,
    ):
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([ask]))
    assert routed <= {service.name for service in answer.list_services_response.service}
    assert "vaeserve.v1.ModelAdmin" not in routed


def test_kserve_serves_the_model_of_its_name(
    rendered: Rendered, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the repository at /mnt/models, the model that is called as the InferenceService."""
    manifests = rendered("kserve")
    mounts = folders(tmp_path, manifests, repository)
    with (
        started(pod_of(manifests, "ServingRuntime"), mounts, tmp_path / "log", monkeypatch) as (service, _),
        Client(service.target) as client,
    ):
        assert [model.name for model in client.models()] == [MODEL]


def execute(container: Container, variables: dict[str, str], mounts: Mapping[str, Path]) -> int:
    """Run a job's container to its end, and return its exit code."""
    command = container.get("command", ["vaeserve"])
    program = {"vaeserve": [sys.executable, "-m", "vaeserve"], "python": [sys.executable]}[command[0]]
    arguments = [*program, *command[1:], *words(container, variables, mounts)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(arguments, env=environment, timeout=200, check=False).returncode


def variables_of(manifests: list[Manifest], mounts: Mapping[str, Path]) -> dict[str, str]:
    """Return the variables that a job's ConfigMap gives."""
    (config,) = of_kind(manifests, "ConfigMap")
    return {name: placed(value, mounts) for name, value in config["data"].items()}


def rows_of_the_model(path: Path, rows: NDArray[Any]) -> None:
    """Write rows as a table with the model's columns."""
    pq.write_table(pa.table({f"c{index}": column for index, column in enumerate(rows.T)}), path)


def test_models_are_fetched(rendered: Rendered, repository: Path, tmp_path: Path) -> None:
    """The init container copies a repository from a store into the empty volume, where its bundles are whole."""
    pod = pod_of(rendered("everything"), "Deployment")
    (fetch,) = pod.spec["initContainers"]
    target = tmp_path / "models"
    target.mkdir()
    url = repository.as_uri()
    assert execute(fetch, {"MODELS_URL": url}, {"/models": target}) == 0
    assert Bundle.open(target / MODEL / "1").manifest == Bundle.open(repository / MODEL / "1").manifest
    assert execute(fetch, {"MODELS_URL": f"{url}/absent"}, {"/models": target}) != 0


def test_the_job_trains_and_exports(
    rendered: Rendered, repository: Path, tmp_path: Path, rows_of: Callable[..., NDArray[Any]]
) -> None:
    """Run one after the other, its containers leave a whole bundle in the repository; a second export is the next."""
    manifests = rendered("train")
    mounts = folders(tmp_path, manifests, repository)
    mounts["/models"] = tmp_path / "repository"
    mounts["/models"].mkdir()
    rows_of_the_model(mounts["/data"] / "rows.parquet", rows_of(MODEL, 300))
    variables = variables_of(manifests, mounts)
    train, export = pod_of(manifests, "Job").containers
    assert execute(train, variables | {"VAESERVE_OPTIMIZER_MAX_STEPS": "20"}, mounts) == 0
    for version in ("1", "2"):
        assert execute(export, variables, mounts) == 0
        assert Bundle.open(mounts["/models"] / variables["NAME"] / version).manifest.name == variables["NAME"]


def test_the_indexed_job_scores_every_row(
    rendered: Rendered, repository: Path, tmp_path: Path, rows_of: Callable[..., NDArray[Any]]
) -> None:
    """Its pods, each with its index, leave a finished folder; bad input ends one with the code that isn't retried."""
    manifests = rendered("score")
    mounts = folders(tmp_path, manifests, repository)
    pod = pod_of(manifests, "Job")
    (container,) = pod.containers
    rows_of_the_model(mounts["/data"] / "rows.parquet", rows_of(MODEL, 300))
    variables = variables_of(manifests, mounts) | {"JOB": "vaeserve-score", "BUNDLE": str(repository / MODEL / "1")}
    for index in range(pod.owner["spec"]["completions"]):
        assert execute(container, variables | {"JOB_COMPLETION_INDEX": str(index)}, mounts) == 0
    assert (Path(variables["OUT"]) / "vaeserve-score" / "_SUCCESS").exists()
    absent = variables | {"JOB_COMPLETION_INDEX": "0", "INPUT": "absent.parquet", "JOB": "another"}
    assert execute(container, absent, mounts) == 2
