"""The models that are served, by name and version."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from vaeserve.bundle import Bundle
from vaeserve.errors import BundleError, NotFoundError
from vaeserve.versions import models, versions
from vaeserve_service.batcher import Runners
from vaeserve_service.config import ServiceConfig
from vaeserve_service.metrics import Metrics
from vaeserve_service.model import Model
from vaeserve_service.runtime import Runtime


class Repository:
    """Loaded models; newest versions first."""

    def __init__(self, loaded: dict[str, list[Model]]) -> None:
        self._models = loaded

    @classmethod
    def load(cls, config: ServiceConfig, *, runners: Runners, metrics: Metrics) -> Self:
        """Load the newest versions of every model in the configured folder.

        Raises BundleError, naming the file, for a bundle that isn't whole, or where there is none at all.
        """
        path = config.repository.path
        if not path.is_dir():
            raise BundleError(f"{path}: no such folder; expected a repository: NAME/VERSION/manifest.json")
        loaded = {
            name: [
                Model(
                    name,
                    bundle,
                    Runtime.load(bundle, device=config.runtime.device),
                    config=config,
                    runners=runners,
                    on_batch=metrics.batch_observer(name, bundle.version),
                )
                for bundle in _newest(path, name, config.repository.latest)
            ]
            for name in models(path)
        }
        if not loaded:
            raise BundleError(f"{path}: no bundles; expected NAME/VERSION/manifest.json")
        return cls(loaded)

    def __iter__(self) -> Iterator[Model]:
        for served in self._models.values():
            yield from served

    def names(self) -> list[str]:
        """Return the models' names, sorted."""
        return sorted(self._models)

    def versions(self, name: str) -> list[Model]:
        """Return a model's versions, newest first; raises NotFoundError for an unknown name."""
        if name not in self._models:
            raise NotFoundError(f"model: {name!r}; the service has {', '.join(self.names())}")
        return self._models[name]

    def get(self, name: str, version: str = "") -> Model:
        """Return a model; an empty version is the newest. Raises NotFoundError, naming what there is."""
        served = self.versions(name)
        if not version:
            return served[0]
        for model in served:
            if model.version == version:
                return model
        known = ", ".join(model.version for model in served)
        raise NotFoundError(f"model {name!r}, version: {version!r}; the service has {known}")


def _newest(path: Path, name: str, count: int) -> Iterator[Bundle]:
    for version in versions(path, name)[: -count - 1 : -1]:
        yield Bundle.open(path / name / str(version))
