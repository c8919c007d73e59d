"""Files and folders that appear whole or not at all: written beside their place, flushed to disk, then renamed.

A writer that is killed leaves a folder `.NAME.*.partial`, which is locked for as long as its writer lives: the next one
in its place sees that it isn't, and removes it.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of `files`, in their order.

    Raises OSError, leaving nothing, if there is something at `target` or it can't be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    with _partial_folder(target) as partial:
        partial.chmod(0o755)
        for name, content in files.items():
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _flush_folder(partial)
        partial.rename(target)
        _flush_folder(target.parent)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield the path to write a file at, which takes `target`'s place if all goes well and else is removed."""
    descriptor, name = tempfile.mkstemp(prefix=_prefix(target), suffix=".partial", dir=target.parent)
    partial = Path(name)
    try:
        os.fchmod(descriptor, 0o644)
        yield partial
        os.fsync(descriptor)
        partial.rename(target)
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """Yield a locked folder beside `target`, which is removed in the end if it is still there."""
    partial = Path(tempfile.mkdtemp(prefix=_prefix(target), suffix=".partial", dir=target.parent))
    try:
        with _locked(partial):
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_abandoned(target: Path) -> None:
    """Remove what killed writers of `target` left; on a file system without locks it stays."""
    for partial in _beside(target, ".partial"):
        with contextlib.suppress(OSError), _locked(partial) as locked:
            if locked:
                # In one step, before anything in it is gone: whoever were to write it after all would fail whole.
                partial.rename(partial.with_suffix(".abandoned"))
    for abandoned in _beside(target, ".abandoned"):
        shutil.rmtree(abandoned, ignore_errors=True)


def _beside(target: Path, suffix: str) -> list[Path]:
    names = (entry for entry in target.parent.iterdir() if entry.name.startswith(_prefix(target)))
    return [entry for entry in names if entry.name.endswith(suffix) and entry.is_dir() and not entry.is_symlink()]


def _prefix(target: Path) -> str:
    return f".{target.name[:64]}."


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, which ends with the process; yield whether its file system has any.

    Raises BlockingIOError if another has it.
    """
    import fcntl  # not on Windows, which can read bundles

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError:
            raise
        except OSError:
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
