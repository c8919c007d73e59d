"""The examples of the pages: an overlay of a user's own, and a canary beside it."""

import re
from pathlib import Path

import pytest
import yaml

from tests.deploy.meaning import faults
from tests.deploy.pods import pods
from tests.deploy.rendering import DEPLOY, ROOT, Manifest, of_kind, render

pytestmark = pytest.mark.deploy

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
README = (DEPLOY / "README.md").read_text()


def examples(page: str) -> list[str]:
    """Return a page's blocks of YAML."""
    return re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)


def rendered(tmp_path: Path, text: str, *, more: str = "", settings: str = "") -> list[Manifest]:
    """Return what becomes of an overlay in a folder beside this repository."""
    if not (tmp_path / "vaeserve").exists():
        (tmp_path / "vaeserve").symlink_to(ROOT)
    folder = tmp_path / "overlay"
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(text + more)
    (folder / "service.toml").write_text((DEPLOY / "base" / "service.toml").read_text() + settings)
    return render(folder)


def overlay() -> str:
    """Return the overlay of a user's own."""
    (text,) = examples(README)
    return text


def test_an_overlay_has_ten_lines(tmp_path: Path) -> None:
    """It renders without a fault, in its namespace, with each image from its registry and its tag as it was."""
    assert len(overlay().splitlines()) == 10
    manifests = rendered(tmp_path, overlay())
    assert faults(manifests) == []
    assert {manifest["metadata"]["namespace"] for manifest in manifests} == {"anomalies"}
    (pod,) = pods(manifests)
    assert [container["image"] for container in pod.containers] == ["registry.example.com/vaeserve:0.1.0"]


def test_five_commands_deploy_what_is_there(tmp_path: Path) -> None:
    """There are five, they build the images that the overlay and the job name, from targets of the Dockerfile."""
    (commands,) = re.findall(r"```sh\n(.*?)```", OPERATIONS, re.DOTALL)
    assert len(commands.splitlines()) == 5
    job = overlay().replace("overlays/cpu\n", "overlays/cpu\n  - ../vaeserve/deploy/jobs/train\n")
    manifests = rendered(tmp_path, job)
    wanted = {container["image"] for pod in pods(manifests) for container in pod.containers}
    assert {*re.findall(r"--tag (\S+)", commands)} == wanted
    stages = re.findall(r"^FROM .* AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {*re.findall(r"--target (\S+)", commands)} <= {*stages}
    assert f"--namespace {yaml.safe_load(overlay())['namespace']} deployment/vaeserve" in commands


def test_a_canary_takes_its_share(tmp_path: Path) -> None:
    """Its Deployment renders without a fault, and the first overlay's route weighs both Services, which are there."""
    canary, weights = examples(OPERATIONS)
    second = rendered(tmp_path, canary, settings="[repository.versions]\nfraud = [4]\n")
    assert faults(second) == []
    gateway = overlay().replace("monitoring\n", "monitoring\n  - ../vaeserve/deploy/components/gateway\n")
    first = rendered(tmp_path, gateway, more=weights)
    services = {service["metadata"]["name"] for service in of_kind([*first, *second], "Service")}
    (route,) = of_kind(first, "GRPCRoute")
    ends = route["spec"]["rules"][0]["backendRefs"]
    assert {end["name"]: end["weight"] for end in ends} == {"vaeserve": 95, "vaeserve-canary": 5}
    assert {end["name"] for end in ends} <= services
