"""Which of the versions on disk are to be served, and for which of them the service waits."""

from collections.abc import Collection, Mapping

from vaeserve_service.config import RepositoryConfig


class Policy:
    """The settings' choice: of each model its newest versions that load, or those that are listed."""

    def __init__(self, config: RepositoryConfig) -> None:
        self._latest = config.latest
        self._names = config.models
        self._versions = config.versions
        self.named = sorted({*config.models, *config.versions})

    def candidates(self, name: str, found: Collection[int]) -> tuple[list[int], int]:
        """Return the versions of `found` to try in their order, and how many of them are to be served.

        Newest first: where one doesn't load, the next older one takes its place, unless versions are listed.
        """
        if self._names and name not in self._names:
            return [], 0
        listed = self._versions.get(name)
        newest = sorted(found if listed is None else set(listed) & set(found), reverse=True)
        return newest, self._latest if listed is None else len(newest)

    def missing(self, served: Mapping[str, Collection[int]]) -> list[str]:
        """Return what is named and isn't served, as `NAME` or `NAME/VERSION`."""
        return [
            f"{name}/{version}" if version else name
            for name in self.named
            for version in self._versions.get(name, (0,))
            if not (version in served.get(name, ()) if version else served.get(name))
        ]
