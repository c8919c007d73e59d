"""What the field's tools say of every composition and of the Dockerfile; each is seen to refuse a fault."""

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.deploy.rendering import COMPOSITIONS, ROOT, Manifest, of_kind, run

pytestmark = pytest.mark.deploy

Rendered = Callable[[str], list[Manifest]]

# The oldest that has all that is used here, and the newest that is known; models-image takes 1.36.
KUBERNETES = ("1.33", "1.37")
# Schemas of custom resources, which lie beside a checkout or where the variable says.
CRDS = Path(os.environ.get("VAESERVE_CRDS", ROOT.parent / "shared" / "crds"))
CUSTOM = ("GRPCRoute", "InferenceService", "PrometheusRule", "ScaledObject", "ServiceMonitor", "ServingRuntime")
CHECKOV = Path(__file__).with_name("checkov.yaml")


def write(path: Path, manifests: Sequence[Manifest]) -> Path:
    """Write manifests to a file, and return it."""
    path.write_text(yaml.safe_dump_all(manifests))
    return path


def validated(path: Path, version: str) -> list[str]:
    """Return what kubernetes-validate finds, warnings included."""
    said = run("kubernetes-validate", "--strict", "--quiet", "-k", version, path, check=False)
    return said.splitlines()


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", COMPOSITIONS)
def test_kubernetes_knows_every_field(rendered: Rendered, tmp_path: Path, name: str, version: str) -> None:
    """Of each version no field is unknown, no type wrong and no kind removed."""
    own = [manifest for manifest in rendered(name) if manifest["kind"] not in CUSTOM]
    assert own or name == "kserve"
    assert validated(write(tmp_path / "own.yaml", own), version) == []


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [("Deployment", "replica", 2), ("Deployment", "replicas", "two"), ("HorizontalPodAutoscaler", "targetRef", {})],
)
def test_unknown_fields_and_wrong_types_are_refused(
    rendered: Rendered, tmp_path: Path, kind: str, key: str, value: object
) -> None:
    """A misspelt field or a wrong type is found."""
    (manifest,) = copy.deepcopy(of_kind(rendered("cpu"), kind))
    manifest["spec"][key] = value
    assert validated(write(tmp_path / "wrong.yaml", [manifest]), KUBERNETES[0])


def test_removed_kinds_are_refused(rendered: Rendered, tmp_path: Path) -> None:
    """An autoscaler of autoscaling/v2beta2, which is gone, is found, though only as a warning."""
    (manifest,) = copy.deepcopy(of_kind(rendered("cpu"), "HorizontalPodAutoscaler"))
    manifest["apiVersion"] = "autoscaling/v2beta2"
    assert validated(write(tmp_path / "gone.yaml", [manifest]), KUBERNETES[0])


def closed(schema: Any) -> Any:
    """Return a schema that refuses the fields it doesn't name, where it doesn't let them through on purpose."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    open_on_purpose = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and not open_on_purpose:
        made["additionalProperties"] = False
    return made


@pytest.fixture(scope="session")
def schemas() -> dict[str, dict[str, Any]]:
    """The custom resources' schemas by apiVersion and kind; skips where they are absent."""
    if not CRDS.is_dir():
        pytest.skip(f"{CRDS} isn't here: the schemas of custom resources, which VAESERVE_CRDS may place elsewhere")
    found = {}
    for path in CRDS.glob("*.yaml"):
        for definition in filter(None, yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader)):
            spec = definition["spec"]
            if spec["names"]["kind"] not in CUSTOM:
                continue
            for version in spec["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                # Of these the definition says no more than that they are there.
                schema["properties"] |= {"metadata": {"type": "object"}}
                found[f"{spec['group']}/{version['name']} {spec['names']['kind']}"] = schema
    return found


def refused(schemas: dict[str, dict[str, Any]], manifest: Manifest) -> list[str]:
    """Return what a custom resource's schema says of a manifest."""
    schema = schemas[f"{manifest['apiVersion']} {manifest['kind']}"]
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_custom_resources_have_no_unknown_field(
    rendered: Rendered, schemas: dict[str, dict[str, Any]], name: str
) -> None:
    """Each is as its project's definition says."""
    for manifest in of_kind(rendered(name), *CUSTOM):
        assert refused(schemas, manifest) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("everything", "GRPCRoute"),
        ("everything", "PrometheusRule"),
        ("everything", "ServiceMonitor"),
        ("keda", "ScaledObject"),
        ("kserve", "InferenceService"),
        ("kserve", "ServingRuntime"),
    ],
)
def test_custom_resources_with_unknown_fields_are_refused(
    rendered: Rendered, schemas: dict[str, dict[str, Any]], name: str, kind: str
) -> None:
    """A field that the definition lacks is found in each kind."""
    manifest = copy.deepcopy(of_kind(rendered(name), kind)[0])
    manifest["spec"]["replica"] = 2
    assert refused(schemas, manifest)


def test_every_custom_kind_is_composed(rendered: Rendered) -> None:
    """So that none goes unchecked; and no other kind of theirs is used."""
    kinds = {manifest["kind"]: manifest["apiVersion"] for name in COMPOSITIONS for manifest in rendered(name)}
    built_in = ("v1", "apps/v1", "autoscaling/v2", "batch/v1", "networking.k8s.io/v1", "policy/v1")
    assert sorted(kind for kind, version in kinds.items() if version not in built_in) == sorted(CUSTOM)


def found_by_checkov(*options: str | Path, check: bool = True) -> str:
    """Return what checkov says; it is asked to call nobody."""
    quiet = ("--skip-download", "--compact", "--quiet", "--config-file", CHECKOV)
    return run("checkov", *options, *quiet, check=check)


@pytest.mark.timeout(600)
def test_checkov_finds_nothing_but_what_has_a_reason(rendered: Rendered, tmp_path: Path) -> None:
    """Every composition and the Dockerfile pass all of its checks that aren't skipped with a reason."""
    for name in COMPOSITIONS:
        write(tmp_path / f"{name}.yaml", rendered(name))
    assert "Passed checks" in found_by_checkov("--directory", tmp_path, "--framework", "kubernetes")
    assert "Passed checks" in found_by_checkov("--file", ROOT / "Dockerfile", "--framework", "dockerfile")


@pytest.mark.timeout(600)
def test_checkov_finds_a_fault(rendered: Rendered, tmp_path: Path) -> None:
    """A privileged container and an image that runs as root are found."""
    (deployment,) = copy.deepcopy(of_kind(rendered("cpu"), "Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["securityContext"]["privileged"] = True
    wrong = write(tmp_path / "wrong.yaml", [deployment])
    assert "CKV_K8S_16" in found_by_checkov("--file", wrong, "--framework", "kubernetes", check=False)
    (tmp_path / "Dockerfile").write_text("FROM debian:bookworm\nUSER root\n")
    said = found_by_checkov("--file", tmp_path / "Dockerfile", "--framework", "dockerfile", check=False)
    assert "CKV_DOCKER_8" in said


def test_every_skipped_check_has_a_reason() -> None:
    """Each skip stands under a comment."""
    lines = CHECKOV.read_text().splitlines()
    skips = [index for index, line in enumerate(lines) if line.startswith("  - ")]
    assert skips
    assert all(lines[index - 1].startswith("  # ") for index in skips)


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    """The Dockerfile passes every rule of hadolint's, and one with a fault doesn't."""
    assert run("hadolint", "--failure-threshold", "style", ROOT / "Dockerfile") == ""
    (tmp_path / "Dockerfile").write_text("FROM debian\nRUN cd /tmp && apt-get install curl\n")
    assert "DL3008" in run("hadolint", tmp_path / "Dockerfile", check=False)
