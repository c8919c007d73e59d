"""The versions of models in a repository, `NAME/VERSION/`, each a bundle."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vaeserve.bundle import MANIFEST, VERSION, Bundle, refuse_existing, write
from vaeserve.errors import ConfigError, OperatorError
from vaeserve.manifest import NAME, Manifest


def versions(repository: Path, name: str) -> list[int]:
    """Return the versions of a model in a repository, ascending: the folders with a manifest.

    Raises OperatorError for a folder that can't be read.
    """
    folder = repository / name
    with _readable(folder):
        return sorted(number for number in _numbers(folder) if (folder / str(number) / MANIFEST).exists())


def models(repository: Path) -> Iterator[str]:
    """Yield the names of the models in a repository that have a version, sorted; raises as `versions` does."""
    with _readable(repository):
        names = sorted(entry.name for entry in _entries(repository) if NAME.fullmatch(entry.name))
    return (name for name in names if versions(repository, name))


def _numbers(folder: Path) -> list[int]:
    return [int(entry.name) for entry in _entries(folder) if VERSION.fullmatch(entry.name)]


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperatorError(f"{folder}: {error.strerror}; expected a folder that can be read") from None


def refuse_version(folder: Path, version: int | None) -> None:
    """Raise ConfigError for a version that can't be, OperatorError for one that `folder` has; None is the next one."""
    if version is None:
        return
    if not VERSION.fullmatch(str(version)):
        raise ConfigError(f"--version {version}: expected a whole number from 1, of 18 digits at most")
    refuse_existing(folder / str(version))


def write_version(folder: Path, version: int | None, files: Mapping[str, bytes], manifest: Manifest) -> Bundle:
    """Write a bundle as `version` in the folder of its model, or as the next one; raises as `write` does."""
    if version is not None:
        return write(folder / str(version), files, manifest)
    while True:
        with _readable(folder):
            target = folder / str(max(_numbers(folder), default=0) + 1)
        try:
            return write(target, files, manifest)
        except OperatorError:
            if not target.exists():  # or another writer was faster, and took this number
                raise
