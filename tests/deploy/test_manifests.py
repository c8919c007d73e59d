"""What is seen in deploy/ without any tool: the base's files, and whether they and the service's agree."""

from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

import vaeserve
from tests.deploy.meaning import faults
from tests.deploy.pods import named, pods
from tests.deploy.rendering import DEPLOY, Manifest
from tests.deploy.wiring import PROBES
from vaeserve_service.call import Service
from vaeserve_service.grpc_aio import add_service
from vaeserve_service.health import SERVICE, Health, methods
from vaeserve_service.metrics import Metrics
from vaeserve_service.observer import Observer

BASE = DEPLOY / "base"
FOLDERS = sorted(path.parent.relative_to(DEPLOY).as_posix() for path in DEPLOY.rglob("kustomization.yaml"))
# Of a folder's files those that are for who reads it, and for other programs.
UNLISTED = {"kustomization.yaml", "adapter-values.yaml"}


def kustomization(folder: Path) -> Manifest:
    """Return what Kustomize is told to put together."""
    read: Manifest = yaml.safe_load((folder / "kustomization.yaml").read_text())
    return read


@pytest.fixture
def base() -> list[Manifest]:
    """Return the base's manifests, with its ConfigMap as Kustomize would make it."""
    listed = kustomization(BASE)
    (generator,) = listed["configMapGenerator"]
    data = {name: (BASE / name).read_text() for name in generator["files"]}
    config = {"kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
    return [config, *(yaml.safe_load((BASE / name).read_text()) for name in listed["resources"])]


@pytest.fixture
def container(base: list[Manifest]) -> Manifest:
    """Return the deployment's one container."""
    only: Manifest
    ((only,),) = [pod.containers for pod in pods(base)]
    return only


def listed(told: Manifest) -> set[str]:
    """Return the files of its own folder that a kustomization lists."""
    names = [*told.get("resources", []), *told.get("configurations", [])]
    names += [file.rpartition("=")[2] for generator in told.get("configMapGenerator", [])
              for file in generator.get("files", [])]  # fmt: skip
    names += [patch["path"] for patch in told.get("patches", []) if "path" in patch]
    return {name for name in names if not name.startswith("..")}


@pytest.mark.parametrize("folder", FOLDERS)
def test_kustomizations_list_their_folders(folder: str) -> None:
    """Every file of a folder is listed, every listed file is there, and the first line says what it is for."""
    path = DEPLOY / folder
    assert listed(kustomization(path)) == {file.name for file in path.iterdir()} - UNLISTED
    if folder != "base":
        assert (path / "kustomization.yaml").read_text().startswith("# ")


def test_the_readme_names_every_folder() -> None:
    """Each overlay, component and job has its line."""
    page = (DEPLOY / "README.md").read_text()
    assert len(FOLDERS) > 15
    for folder in FOLDERS:
        assert folder == "base" or f"]({folder})" in page


def test_base_has_no_fault(base: list[Manifest]) -> None:
    """Selectors, ports, settings, grace, resources, security: everything agrees, as it does once rendered."""
    assert faults(base) == []
    assert [named(pod.owner) for pod in pods(base)] == ["Deployment/vaeserve"]


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("terminationGracePeriodSeconds",), 35, "killed after 35 s"),
        (("enableServiceLinks",), True, "variables of Services"),
        (("serviceAccountName",), "default", "refers to ServiceAccount/default"),
        (("containers", 0, "ports", 0, "containerPort"), 9001, "it listens on 8001"),
        (("containers", 0, "resources", "requests", "cpu"), "4", "asks for 4 cpu of 2"),
    ],
)
def test_a_fault_in_the_base_is_found(
    base: list[Manifest], *, path: tuple[str | int, ...], value: object, said: str
) -> None:
    """A pod with one of these faults is refused, and told which; test_meaning.py has more."""
    (node,) = [pod.spec for pod in pods(base)]
    *steps, last = path
    for step in steps:
        node = node[step]  # type: ignore[index]
    node[last] = value  # type: ignore[index]
    assert [fault for fault in faults(base) if said in fault]


@pytest.mark.parametrize(
    ("probe", "while_loading", "when_loaded"),
    [("startupProbe", True, True), ("readinessProbe", False, True), ("livenessProbe", True, True)],
)
async def test_only_readiness_waits_for_the_models(
    container: Manifest, *, probe: str, while_loading: bool, when_loaded: bool
) -> None:
    """Each probe asks the health service for a name it knows; a pod that loads is alive, and not ready."""
    name = container[probe]["grpc"].get("service", "")
    health, server = Health(), grpc.aio.server()
    probes = Service(methods(health), observed=False)
    add_service(server, SERVICE, probes, observer=Observer(Metrics()))
    port = server.add_insecure_port("localhost:0")
    await server.start()
    async with vaeserve.AsyncClient(f"localhost:{port}") as client:
        assert await client.health(name) is while_loading
        health.set("", serving=True)
        assert await client.health(name) is when_loaded
    await server.stop(None)


def test_every_probe_is_there(container: Manifest) -> None:
    """Starting, readiness and liveness are probed, each by gRPC."""
    assert all("grpc" in container[probe] for probe in PROBES)


def test_replicas_on_any_node_can_mount_the_models(base: list[Manifest]) -> None:
    """The claim can be mounted by many nodes at once."""
    (claim,) = [manifest for manifest in base if manifest["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def images() -> list[dict[str, Any]]:
    """Return every image that a kustomization tags, but for one of models."""
    tagged = [image for folder in FOLDERS for image in kustomization(DEPLOY / folder).get("images", [])]
    return [image for image in tagged if image["name"] != "vaeserve-models"]


def test_images_are_this_version() -> None:
    """Each tag is the version that these manifests came with, and the target that a build makes it of."""
    targets = {image["newTag"].removeprefix(vaeserve.__version__).lstrip("-") for image in images()}
    assert targets == {"", "cuda", "jobs", "train"}
    assert {image.get("newName", image["name"]) for image in images()} == {"vaeserve"}
