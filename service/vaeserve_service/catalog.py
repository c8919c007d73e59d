"""What is on disk: the versions of models in a repository, `NAME/VERSION/`, and what changes when their files do."""

from pathlib import Path

from vaeserve.bundle import MANIFEST, VERSION
from vaeserve.manifest import NAME

# Each file's name, and what its writer changes: size, time, inode and mode; or why the folder can't be read.
Fingerprint = tuple[tuple[str, int, int, int, int], ...] | str


def names(repository: Path) -> list[str]:
    """Return the folders that may be models', sorted; raises OSError if the repository can't be read."""
    return sorted(entry.name for entry in repository.iterdir() if NAME.fullmatch(entry.name))


def versions(repository: Path, name: str) -> dict[int, Fingerprint]:
    """Return a model's folders with a manifest; none where the model has no folder or can't have that name.

    Raises OSError if it can't be read.
    """
    if not NAME.fullmatch(name):
        return {}
    folder = repository / name
    try:
        found = [entry for entry in folder.iterdir() if VERSION.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    fingerprints = {int(version.name): _fingerprint(version) for version in found}
    return {version: files for version, files in fingerprints.items() if files is not None}


def _fingerprint(folder: Path) -> Fingerprint | None:
    """Return what tells whether a version's files are the same; None without a manifest, for that is no version."""
    try:
        files = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:  # a fault of this version's alone: its load says so
        return str(error.strerror)
    return tuple((file.name, *_stat(file)) for file in files) if folder / MANIFEST in files else None


def _stat(path: Path) -> tuple[int, int, int, int]:
    try:
        status = path.stat()
    except OSError:  # gone since, or a link to nowhere
        return -1, -1, -1, -1
    # The mode too: files that couldn't be read are mended by it alone.
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_mode
