"""One small model, and a network to serve it in."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import train_kind
from tests.deploy.network import Network, need
from vaeserve_export.export import export

MODEL = "table3"


@pytest.fixture(scope="session")
def repository(shared: Path) -> Path:
    """A repository of one small model, `MODEL`."""
    path = shared / "deployed"
    with FileLock(shared / "deployed.lock"):
        if not path.exists():
            export(train_kind(MODEL, shared / "deployed run", steps=20), path, name=MODEL)
    return path


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """A network of its own, without hosts but its gateway; it is gone after the test, whatever became of that."""
    need("ip", "dnsmasq")
    with ExitStack() as stack:
        yield Network(tmp_path, stack)
