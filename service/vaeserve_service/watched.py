"""Files that are read again when they change, and whose last good content stays while they can't be."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from vaeserve.errors import ConfigError

log = structlog.get_logger()

T = TypeVar("T")
Stamp = tuple[object, ...]


class Watched(Generic[T]):
    """What `read` makes of some files, for any thread that asks.

    section: the section of settings that names the files. Raises ConfigError as `read` does, but only at first.
    """

    def __init__(self, section: str, files: Sequence[Path], read: Callable[[], T]) -> None:
        self._section, self._files, self._read = section, files, read
        self._lock = threading.Lock()
        # Before reading: what changes in between is read again. So is half of a change.
        self._stamp = self._look()
        self._content = read()
        self._current = True

    def get(self) -> T:
        """Return what the files say, at the cost of a stat of each unless they have changed."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._read_again()
            return self._content

    def current(self) -> bool:
        """Return whether the files could be read as they are now."""
        self.get()
        return self._current

    def _look(self) -> Stamp:
        return tuple(_stamp(file) for file in self._files)

    def _read_again(self) -> None:
        try:
            self._content = self._read()
        except ConfigError as error:
            self._current = False
            log.error("reload failed; the last good files hold", section=self._section, error=str(error))
        else:
            self._current = True
            log.info("reloaded", section=self._section)


def _stamp(file: Path) -> Stamp | None:
    """Return what changes with a file's content or mode, or with what a link in its path leads to."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
