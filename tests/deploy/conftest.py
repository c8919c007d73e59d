"""A small model, a network to serve it in, compositions of deploy/ rendered once, and a service under Prometheus."""

import shutil
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import train_kind
from tests.deploy.monitored import MODEL, Prometheus, asking, observed_service, prometheus_of, wait_until
from tests.deploy.network import Network, need
from tests.deploy.rendering import COMPOSITIONS, Manifest, of_kind, render, write_overlay
from vaeserve_export.export import export


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Manifest]]:
    """The manifests of a composition: `rendered("cpu")`."""
    made: dict[str, list[Manifest]] = {}

    def of(name: str) -> list[Manifest]:
        if name not in made:
            base, components = COMPOSITIONS[name]
            made[name] = render(write_overlay(tmp_path_factory.mktemp("overlay") / name, base, components))
        return made[name]

    return of


@pytest.fixture(scope="session")
def repository(shared: Path) -> Path:
    """A repository of one small model, `MODEL`."""
    path = shared / "deployed"
    with FileLock(shared / "deployed.lock"):
        if not path.exists():
            export(train_kind(MODEL, shared / "deployed run", steps=20), path, name=MODEL)
    return path


@dataclass(frozen=True)
class Monitored:
    """What a live service shows, and the Prometheus that has scraped it under load."""

    scrape: str
    prometheus: Prometheus


@pytest.fixture(scope="session")
def monitored(
    tmp_path_factory: pytest.TempPathFactory, repository: Path, rendered: Callable[[str], list[Manifest]]
) -> Iterator[Monitored]:
    """A service and a Prometheus with the rules of the PrometheusRule, after several scrapes under load."""
    (rule,) = of_kind(rendered("everything"), "PrometheusRule")
    folder = tmp_path_factory.mktemp("monitored")
    shutil.copytree(repository, folder / "repository")
    with observed_service(folder) as (service, authority):
        # A version that can't be loaded.
        (folder / "repository" / MODEL / "2").mkdir()
        (folder / "repository" / MODEL / "2" / "manifest.json").write_text("{}")
        with prometheus_of(service, folder / "prometheus", rule["spec"]) as prometheus:
            with asking(service, authority):
                wait_until(lambda: max(prometheus.ask("count_over_time(up[5m])").values(), default=0) > 8)
            context = ssl.create_default_context(cadata=authority.decode())
            url = f"{service.http.replace('http://127.0.0.1', 'https://localhost')}/metrics"
            with urllib.request.urlopen(url, timeout=20, context=context) as response:  # noqa: S310 - loopback
                yield Monitored(response.read().decode(), prometheus)


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """A network of its own, without hosts but its gateway; it is gone after the test, whatever became of that."""
    need("ip", "dnsmasq")
    with ExitStack() as stack:
        yield Network(tmp_path, stack)
