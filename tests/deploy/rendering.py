"""What Kustomize makes of deploy/, and of overlays that a user would write."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS_S = 240

# What is put together and checked: a name, and the folder with the components that a user adds to it.
COMPOSITIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "base": ("base", ()),
    "cpu": ("overlays/cpu", ()),
    "cuda": ("overlays/cuda", ()),
    "kserve": ("overlays/kserve", ()),
    "everything": ("overlays/cpu", ("monitoring", "gateway", "tls", "access", "models-fetch")),
    "everything-cuda": ("overlays/cuda", ("monitoring", "gateway", "tls", "access")),
    "keda": ("base", ("network-policy", "keda", "monitoring")),
    "models-image": ("overlays/cpu", ("models-image",)),
    "canary": ("base", ("network-policy", "canary")),
    "score": ("jobs/score", ()),
    "nightly": ("jobs/nightly", ()),
    "train": ("jobs/train", ()),
}


def tool(name: str) -> str:
    """Return a program's path; where it is absent skip the test, and in CI fail it."""
    path = shutil.which(name)
    if path is None:
        word = f"{name} isn't here; `make verify-deploy` brings what it can, Debian's package prometheus has promtool"
        pytest.fail(word) if os.environ.get("CI") else pytest.skip(word)
    return str(path)


def run(name: str, *arguments: str | Path, check: bool = True, text: str = "") -> str:
    """Run a tool to its end, and return what it printed; fails where it does, unless told not to `check`."""
    command = [tool(name), *map(str, arguments)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TOOLS_S, check=False)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout + done.stderr


def render(folder: Path) -> list[Manifest]:
    """Return the manifests of a folder with a kustomization."""
    return [manifest for manifest in yaml.safe_load_all(run("kubectl", "kustomize", folder)) if manifest]


def write_overlay(folder: Path, base: str, components: Sequence[str] = ()) -> Path:
    """Write an overlay of a folder of deploy/ and of components into `folder`, and return it."""
    here = os.path.relpath(DEPLOY, folder)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{here}/{base}"],
        "components": [f"{here}/components/{component}" for component in components],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def of_kind(manifests: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    """Return the manifests of some kinds."""
    return [manifest for manifest in manifests if manifest["kind"] in kinds]
