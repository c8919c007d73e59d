"""The models that are served, by name and version."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from vaeserve.errors import NotFoundError
from vaeserve_service.model import Model

T = TypeVar("T")


class State(Enum):
    """What has become of a version."""

    LOADING = auto()
    READY = auto()
    FAILED = auto()


@dataclass(frozen=True)
class VersionState:
    """A version's state, and why it, or what its files have become since, can't be loaded."""

    version: str
    state: State
    reason: str = ""


class Repository:
    """Loaded models, newest versions first, and how those fare that are not.

    It holds the one lasting reference to a model: calls in flight hold another, so a model that is taken out answers
    them and is freed with the last.
    """

    def __init__(self) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        self._notes: dict[str, dict[str, VersionState]] = {}

    def __iter__(self) -> Iterator[Model]:
        for name in self.names():
            yield from self._models[name].values()

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def names(self) -> list[str]:
        """Return the names of the models that are served, sorted."""
        return sorted(self._models)

    def served(self, name: str) -> set[int]:
        """Return the versions of a model that are served."""
        return set(map(int, self._models.get(name, ())))

    def get(self, name: str, version: str = "") -> Model:
        """Return a model; an empty version is the newest. Raises NotFoundError, naming what there is."""
        versions = self._models.get(name)
        if versions is None:
            raise NotFoundError(f"model: {name!r}; the service has {', '.join(self.names()) or 'none yet'}")
        if not version:
            return next(iter(versions.values()))
        if version not in versions:
            raise NotFoundError(f"model {name!r}, version: {version!r}; the service has {', '.join(versions)}")
        return versions[version]

    def states(self) -> dict[str, list[VersionState]]:
        """Return every version that is served, is being loaded or failed to, newest first, by model."""
        return {name: self.states_of(name) for name in sorted({*self._models, *self._notes})}

    def states_of(self, name: str) -> list[VersionState]:
        """Return a model's entry of `states`."""
        notes = self._notes.get(name, {})
        ready = {
            version: VersionState(version, State.READY, notes[version].reason if version in notes else "")
            for version in self._models.get(name, ())
        }
        return [state for _, state in _newest_first(notes | ready)]

    def put(self, model: Model) -> None:
        """Serve a model from the next call on, in the place of the same version if there is one."""
        versions = self._models.get(model.name, {}) | {model.version: model}
        self._models[model.name] = dict(_newest_first(versions))
        self.forget(model.name, model.version)

    def remove(self, name: str, version: str) -> Model:
        """Serve a version no more, from the next call on; return its model."""
        model = self._models[name].pop(version)
        if not self._models[name]:
            del self._models[name]
        self.forget(name, version)
        return model

    def note(self, name: str, version: str, state: State, reason: str = "") -> None:
        """Say how a version fares that isn't served, or isn't as its files are now."""
        self._notes.setdefault(name, {})[version] = VersionState(version, state, reason)

    def forget(self, name: str, version: str) -> None:
        """Say nothing more of a version but that it is served, if it is."""
        notes = self._notes.get(name, {})
        notes.pop(version, None)
        if not notes:
            self._notes.pop(name, None)


def _newest_first(versions: dict[str, T]) -> list[tuple[str, T]]:
    return sorted(versions.items(), key=lambda item: int(item[0]), reverse=True)
