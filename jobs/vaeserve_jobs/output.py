"""The file that a job writes: all of it or nothing, with its own faults told from those of what is read."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from vaeserve.atomic import new_file
from vaeserve.errors import ConfigError

Opened = TypeVar("Opened")


@contextmanager
def new_output(out: Path, opened: Callable[[Path], AbstractContextManager[Opened]]) -> Iterator[Opened]:
    """Yield what `opened` opens of a path beside `out`, which takes its place if all goes well.

    Raises ConfigError where that can't be opened or finished. What the block raises passes: what it writes, it writes
    within `writing`.
    """
    fault: BaseException | None = None
    try:
        with new_file(out) as partial, opened(partial) as writer:
            try:
                yield writer
            except BaseException as error:
                fault = error
                raise
    except OSError as error:
        raise (fault or _unwritable(out, error)) from None


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raise ConfigError, naming `out`, where it can't be written to."""
    try:
        yield
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> ConfigError:
    return ConfigError(f"--out {out}: {error.strerror or error}; nothing was written")
