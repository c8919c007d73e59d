"""The pods that manifests make, and the settings that the service takes from them."""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from tests.deploy.rendering import Manifest, of_kind
from vaeserve.config import load
from vaeserve_service.config import ServiceConfig

UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


@dataclass(frozen=True)
class Pod:
    """A pod that a manifest makes: whose, its labels and its spec."""

    owner: Manifest
    labels: Mapping[str, str]
    spec: Manifest

    @property
    def containers(self) -> list[Manifest]:
        """Every container, those that come first included."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    def __str__(self) -> str:
        return named(self.owner)


def named(manifest: Manifest) -> str:
    """Return a manifest's kind and name."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def pods(manifests: Sequence[Manifest]) -> list[Pod]:
    """Return the pods that are made; of a CronJob, its Job's; of a ServingRuntime, what KServe is given."""
    found = []
    for manifest in of_kind(manifests, "Deployment", "Job", "CronJob"):
        template = job_spec(manifest)["template"] if manifest["kind"] != "Deployment" else manifest["spec"]["template"]
        found.append(Pod(manifest, template["metadata"]["labels"], template["spec"]))
    for manifest in of_kind(manifests, "ServingRuntime"):
        (service,) = of_kind(manifests, "InferenceService")
        spec = json.loads(json.dumps(manifest["spec"]).replace("{{.Name}}", service["metadata"]["name"]))
        found.append(Pod(manifest, manifest["metadata"]["labels"], spec))
    return found


def job_spec(manifest: Manifest) -> Manifest:
    """Return the spec of a Job, or of those that a CronJob makes."""
    spec: Manifest = manifest["spec"]["jobTemplate"]["spec"] if manifest["kind"] == "CronJob" else manifest["spec"]
    return spec


def services(manifests: Sequence[Manifest]) -> list[Pod]:
    """Return the pods of Deployments."""
    return [pod for pod in pods(manifests) if pod.owner["kind"] == "Deployment"]


def amount(quantity: str) -> float:
    """Return a Kubernetes quantity as a number."""
    matched = re.fullmatch(r"([\d.]+)(\w*)", str(quantity))
    assert matched
    return float(matched[1]) * UNITS[matched[2]]


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Return whether labels are selected by those of a selector, which must have some."""
    return bool(selector) and selector.items() <= labels.items()


def config_of(manifests: Sequence[Manifest], container: Manifest) -> ServiceConfig:
    """Return what the service makes of a container's mounted file and variables; raises as it does for wrong ones."""
    (file,) = [config["data"]["service.toml"] for config in of_kind(manifests, "ConfigMap")
               if "service.toml" in config["data"]] or [""]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAESERVE_REPOSITORY_PATH", "/models")  # the image's
        for variable in container.get("env", []):
            patch.setenv(variable["name"], variable["value"])
        return load(ServiceConfig, defaults=tomllib.loads(file))


def is_service(container: Manifest) -> bool:
    """Return whether a container is the service's."""
    return bool(container.get("args", [""])[0] == "serve")
