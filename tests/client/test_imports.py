"""What importing a component brings with it."""

import subprocess
import sys

import pytest

import vaeserve

HEAVY = ("torch", "onnxruntime", "onnx", "pyarrow", "sklearn", "pandas", "polars", "pydantic", "typer", "matplotlib")


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


def test_the_public_names_are_these() -> None:
    """What others import comes from the package itself, and stays."""
    assert vaeserve.__all__ == sorted(vaeserve.__all__)
    assert set(vaeserve.__all__) == {
        "AsyncClient",
        "Attribution",
        "Bound",
        "Client",
        "RowStatus",
        "Scores",
        "VaeserveError",
    }
    assert all(hasattr(vaeserve, name) for name in vaeserve.__all__)
