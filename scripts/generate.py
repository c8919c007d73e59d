"""Make the committed files that are made from others, or check that they are up to date.

The protobuf code comes from `protos/`, the manifest's JSON schema from `vaeserve.bundle`.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic.json_schema import GenerateJsonSchema

from vaeserve.manifest import Manifest

ROOT = Path(__file__).parent.parent
# Where the packages lie that have protos, whose paths are Python's.
COMPONENTS = {"vaeserve": "client", "vaeserve_service": "service"}


def generate(into: Path) -> list[Path]:
    """Write every generated file below `into`, at its path in the repository; return those paths."""
    for package, component in COMPONENTS.items():
        _generate_protobuf(package, into / component)
    schema = into / "docs" / "manifest.schema.json"
    schema.parent.mkdir(parents=True, exist_ok=True)
    said = {"$schema": GenerateJsonSchema.schema_dialect, **Manifest.model_json_schema()}
    schema.write_text(json.dumps(said | {"title": "The manifest of a vaeserve bundle"}, indent=2) + "\n")
    return sorted(path.relative_to(into) for path in into.rglob("*") if path.is_file())


def _generate_protobuf(package: str, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    root = ROOT / "protos"
    protos = sorted(str(path.relative_to(root)) for path in (root / package).rglob("*.proto"))
    outputs = [f"--{kind}_out={into}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    subprocess.run(  # noqa: S603 - our own arguments
        [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={root}", *outputs, *protos],
        check=True,
        # protoc finds its plugins, mypy-protobuf's among them, on PATH.
        env={"PATH": str(Path(sys.executable).parent)},
    )


def main() -> int:
    """Generate in place, or with `--check` compare with what is committed."""
    if sys.argv[1:] != ["--check"]:
        with tempfile.TemporaryDirectory() as folder:
            for path in generate(Path(folder)):
                (ROOT / path).write_bytes((Path(folder) / path).read_bytes())
        return 0
    with tempfile.TemporaryDirectory() as folder:
        made = generate(Path(folder))
        stale = [
            path
            for path in made
            if not (ROOT / path).exists() or (ROOT / path).read_bytes() != (Path(folder) / path).read_bytes()
        ]
    for path in stale:
        print(f"{path}: out of date; run 'make generate'", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
