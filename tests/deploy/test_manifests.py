"""What Kustomize, schemas and linters don't see in deploy/base: whether its parts and the service's agree."""

import re
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
import yaml
from grpc_health.v1 import health_pb2_grpc

import vaeserve
from vaeserve.cli import app
from vaeserve.config import load
from vaeserve_service.config import ServiceConfig
from vaeserve_service.health import Health

Manifest = dict[str, Any]

BASE = Path(__file__).parents[2] / "deploy" / "base"
UNITS = {"": 1.0, "m": 1e-3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


def amount(quantity: str) -> float:
    """Return a Kubernetes quantity as a number."""
    matched = re.fullmatch(r"([\d.]+)(\w*)", quantity)
    assert matched
    return float(matched[1]) * UNITS[matched[2]]


def read(name: str) -> Manifest:
    """Return a file of the base."""
    manifest: Manifest = yaml.safe_load((BASE / name).read_text())
    return manifest


@pytest.fixture
def kustomization() -> Manifest:
    """Return what Kustomize is told to put together."""
    return read("kustomization.yaml")


@pytest.fixture
def manifests(kustomization: Manifest) -> dict[str, Manifest]:
    """Return the manifests by kind; each is there once."""
    by_kind = {manifest["kind"]: manifest for manifest in map(read, kustomization["resources"])}
    assert len(by_kind) == len(kustomization["resources"])
    return by_kind


@pytest.fixture
def pod(manifests: dict[str, Manifest]) -> Manifest:
    """Return the deployment's pod."""
    spec: Manifest = manifests["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: Manifest) -> Manifest:
    """Return the pod's one container."""
    only: Manifest
    (only,) = pod["containers"]
    return only


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> ServiceConfig:
    """Return the settings of a pod; the image says where the repository is."""
    monkeypatch.setenv("VAESERVE_REPOSITORY_PATH", "/models")
    return load(ServiceConfig, file=BASE / "service.toml")


def test_kustomization_lists_the_folder(kustomization: Manifest) -> None:
    """Every file of the folder is listed, and every listed file is there."""
    generated = [file for generator in kustomization["configMapGenerator"] for file in generator["files"]]
    listed = [*kustomization["resources"], *generated, "kustomization.yaml"]
    assert sorted(listed) == sorted(path.name for path in BASE.iterdir())


def test_selectors_match_the_pods(manifests: dict[str, Manifest]) -> None:
    """The deployment and the service select the pods that the deployment makes."""
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        manifests["Deployment"]["spec"]["selector"]["matchLabels"],
        manifests["Service"]["spec"]["selector"],
    ):
        assert selector
        assert selector.items() <= labels


def test_service_sends_to_ports_of_the_container(manifests: dict[str, Manifest], container: Manifest) -> None:
    """The service offers each port of the container under the container's name for it."""
    targets = {port["name"]: port["targetPort"] for port in manifests["Service"]["spec"]["ports"]}
    assert targets == {port["name"]: port["name"] for port in container["ports"]}


def test_service_says_that_grpc_is_http2_without_tls(manifests: dict[str, Manifest]) -> None:
    """Gateways and meshes are told what the gRPC port speaks."""
    protocols = {port["name"]: port["appProtocol"] for port in manifests["Service"]["spec"]["ports"]}
    assert protocols["grpc"] == "kubernetes.io/h2c"


def test_container_ports_are_those_configured(container: Manifest, config: ServiceConfig) -> None:
    """The container's ports and the probes' are where the service listens."""
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": config.server.grpc_port, "http": config.server.http_port}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] == config.server.grpc_port


@pytest.mark.parametrize(
    ("probe", "while_loading", "when_loaded"),
    [("startupProbe", True, True), ("readinessProbe", False, True), ("livenessProbe", True, True)],
)
async def test_probes_ask_for_names_that_are_registered(
    container: Manifest, *, probe: str, while_loading: bool, when_loaded: bool
) -> None:
    """Each probe asks the health service for a name it knows; only readiness waits for the models."""
    name = container[probe]["grpc"].get("service", "")
    health, server = Health(), grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    async with vaeserve.AsyncClient(f"localhost:{port}") as client:
        assert await client.health(name) is while_loading
        health.set("", serving=True)
        assert await client.health(name) is when_loaded
    await server.stop(None)


def test_pod_is_told_to_read_the_mounted_settings(pod: Manifest, container: Manifest, kustomization: Manifest) -> None:
    """The arguments are a command of ours, and its --config is the generated ConfigMap's file."""
    command, *options = container["args"]
    context = typer.main.get_group(app).commands[command].make_context(command, list(options))
    (generator,) = kustomization["configMapGenerator"]
    (volume,) = [volume["name"] for volume in pod["volumes"] if volume.get("configMap") == {"name": generator["name"]}]
    (folder,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == volume]
    assert str(context.params["config"]) in [f"{folder}/{name}" for name in generator["files"]]


def test_pod_mounts_the_models_read_only(manifests: dict[str, Manifest], pod: Manifest, container: Manifest) -> None:
    """The claim of this folder is mounted, and the service can't write to it."""
    claim = {"claimName": manifests["PersistentVolumeClaim"]["metadata"]["name"], "readOnly": True}
    (volume,) = [volume["name"] for volume in pod["volumes"] if volume.get("persistentVolumeClaim") == claim]
    (mount,) = [mount for mount in container["volumeMounts"] if mount["name"] == volume]
    assert mount["readOnly"] is True


def test_replicas_on_any_node_can_mount_the_models(manifests: dict[str, Manifest]) -> None:
    """The claim can be mounted by many nodes at once."""
    assert manifests["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_pod_has_no_token(manifests: dict[str, Manifest], pod: Manifest) -> None:
    """The pod runs under the folder's own service account, without a token."""
    account = manifests["ServiceAccount"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    assert pod["automountServiceAccountToken"] is False


def test_kubernetes_sets_no_setting(pod: Manifest) -> None:
    """A Service's variables, VAESERVE_SERVER_PORT for one named vaeserve-server, aren't taken for settings."""
    assert pod["enableServiceLinks"] is False


def test_pod_has_time_to_drain(pod: Manifest, container: Manifest, config: ServiceConfig) -> None:
    """A pod is killed only after it has waited for the proxies and drained."""
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits > 0
    assert pod["terminationGracePeriodSeconds"] > waits + config.drain.grace_s


def test_pod_is_restricted(pod: Manifest, container: Manifest) -> None:
    """The pod meets the restricted Pod Security Standard, with a read-only root file system besides."""
    security = pod["securityContext"] | container["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["runAsGroup"] > 0
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_requests_are_within_limits(container: Manifest) -> None:
    """Processor and memory are asked for and limited; memory is not lent twice."""
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    assert requests.keys() == limits.keys() == {"cpu", "memory"}
    assert amount(requests["cpu"]) <= amount(limits["cpu"])
    assert amount(requests["memory"]) == amount(limits["memory"])


def test_image_is_this_version(kustomization: Manifest, container: Manifest) -> None:
    """Kustomize gives the container's image the tag of the version that these manifests came with."""
    assert kustomization["images"] == [{"name": container["image"], "newTag": vaeserve.__version__}]
