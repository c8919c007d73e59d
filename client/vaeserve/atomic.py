"""Files and folders that appear whole or not at all: written beside their place, flushed to disk, then renamed.

A writer that is killed leaves a folder `.NAME.*.partial`, which is locked for as long as its writer lives: the next one
in its place sees that it isn't, and removes it.

Modes are the kernel's to choose: it takes the umask off what a file is made with, where a process can't read its umask
without changing it for all of its threads.
"""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path


def write_folder(target: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of `files`, in their order.

    Raises OSError, leaving nothing, if there is something at `target` or it can't be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    with ExitStack() as held:
        partial = _partial_folder(target, held)
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
    """Yield the path to write a file at, which takes `target`'s place if all goes well and else is removed.

    It has the mode of the file whose place it takes.
    """
    with _partial_file(target) as (partial, descriptor):
        with contextlib.suppress(FileNotFoundError):
            os.fchmod(descriptor, stat.S_IMODE(target.stat().st_mode) & 0o777)
        yield partial
        os.fsync(descriptor)
        partial.rename(target)


@contextmanager
def _partial_file(target: Path) -> Iterator[tuple[Path, int]]:
    """Yield a new file beside `target`, by its path and open, which is removed in the end if it is still there."""
    partial = _unused(target)
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        yield partial, descriptor
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)


def write_once(target: Path, content: bytes) -> bool:
    """Write a file whole unless there is one already, and tell whether it was written: of several writers one does."""
    with _partial_file(target) as (partial, descriptor):
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        os.fsync(descriptor)
        try:
            os.link(partial, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: there two writers at once can't be told apart
            if target.exists():
                return False
            partial.rename(target)
    return True


def remove_partial_files(folder: Path, names: str) -> None:
    """Remove what killed writers of files left whose names match a pattern; nobody may be writing them."""
    for partial in folder.glob(f".{names}.*.partial"):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def _partial_folder(target: Path, held: ExitStack) -> Path:
    """Return a new folder beside `target`, which is locked until `held` ends, and removed then if it is still there."""
    while True:
        partial = _unused(target)
        partial.mkdir()
        held.callback(shutil.rmtree, partial, ignore_errors=True)
        # Before it is locked, another writer may take it for abandoned: then it is gone, or about to be.
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            held.enter_context(_locked(partial))
            if partial.exists():
                return partial


def _unused(target: Path) -> Path:
    return target.with_name(f"{_prefix(target)}{secrets.token_hex(8)}.partial")


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
