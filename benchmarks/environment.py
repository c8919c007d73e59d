"""Where results were measured: the machine, the libraries, the commit."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
LIBRARIES = ("vaeserve", "grpcio", "protobuf", "numpy", "onnxruntime", "torch")


def environment() -> dict[str, Any]:
    """Return what results depend on beside the code."""
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": {"cpu": _cpu(), "cores": len(os.sched_getaffinity(0)), "system": platform.platform()},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _commit() -> str:
    """Return the commit's hash, with `-dirty` where the working tree has changes; "unknown" outside a checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    describe = [git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    described = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    return described.stdout.strip() or "unknown"
