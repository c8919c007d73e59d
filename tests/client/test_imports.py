"""What importing a component brings with it."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vaeserve

HEAVY = (
    "torch",
    "onnxruntime",
    "onnx",
    "pyarrow",
    "sklearn",
    "pandas",
    "polars",
    "pydantic",
    "typer",
    "matplotlib",
    "rich",
    "narwhals",
    "opentelemetry",
)


def loaded_by(module: str) -> set[str]:
    """Return the top-level packages that importing `module` loads in a fresh interpreter."""
    script = f"import sys, {module}; print(*sorted(set(name.partition('.')[0] for name in sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_the_client_weighs_little() -> None:
    """Importing the client loads gRPC, protobuf and NumPy, and none of the large libraries."""
    assert not loaded_by("vaeserve") & set(HEAVY)


@pytest.mark.parametrize("module", ["vaeserve_service.command", "vaeserve_jobs.command"])
def test_the_service_and_the_jobs_never_load_pytorch(module: str) -> None:
    """Neither PyTorch nor what exports with it is loaded to serve or to score."""
    loaded = loaded_by(module)
    assert "onnxruntime" in loaded
    assert not loaded & {"torch", "onnx", "onnxscript", "sklearn", "vaeserve_training", "vaeserve_export"}


@pytest.mark.parametrize("command", ["calibrate", "compare", "verify", "inspect"])
def test_what_is_done_with_a_bundle_never_loads_pytorch(
    models: Any, rows_of: Any, tmp_path: Path, command: str
) -> None:
    """What is done with a bundle takes neither PyTorch nor what exports with it, from the command line down."""
    bundle = shutil.copytree(models.bundles["table3"].path, tmp_path / "models" / "table3" / "1")
    np.savetxt(tmp_path / "rows.csv", rows_of("table3", 100), delimiter=",", header="c0,c1,c2", comments="")
    data = ["--data", str(tmp_path / "rows.csv")] if command in ("calibrate", "compare") else []
    arguments = [str(bundle)] * (1 + (command == "compare")) + data
    script = (
        "import sys; from vaeserve.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print(*sorted(set(name.partition('.')[0] for name in sys.modules)))"
    )
    run = [sys.executable, "-c", script, command, *arguments]
    done = subprocess.run(run, check=True, capture_output=True, text=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert ("onnxruntime" in loaded) == (command != "inspect")
    assert ("onnx" in loaded) == (command == "verify")  # for its checker
    assert not loaded & {"torch", "onnxscript", "safetensors", "vaeserve_training"}


def test_the_public_names_are_these() -> None:
    """What others import comes from the package itself, and stays."""
    assert vaeserve.__all__ == sorted(vaeserve.__all__)
    assert set(vaeserve.__all__) == {
        "AsyncClient",
        "Attribution",
        "Bound",
        "Client",
        "Interpolation",
        "RowStatus",
        "Scores",
        "Tls",
        "VaeserveError",
    }
    assert all(hasattr(vaeserve, name) for name in vaeserve.__all__)
