"""Files and folders that appear whole or not at all: written beside their place, flushed to disk, then renamed."""

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
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name[:64]}.", suffix=".partial", dir=target.parent))
    try:
        partial.chmod(0o755)
        for name, content in files.items():
            with (partial / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _flush_folder(partial)
        partial.rename(target)
        _flush_folder(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield the path to write a file at, which takes `target`'s place if all goes well and else is removed."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name[:64]}.", suffix=".partial", dir=target.parent)
    partial = Path(name)
    try:
        os.fchmod(descriptor, 0o644)
        yield partial
        os.fsync(descriptor)
        partial.rename(target)
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
