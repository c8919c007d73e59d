"""What the command line's commands share: where they speak, and how they load their components."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from vaeserve.errors import MissingExtraError

# What a person reads goes to stderr, so that stdout is left to what a program reads.
console = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def component(extra: str) -> Iterator[None]:
    """Import a component; raises MissingExtraError where what it needs isn't installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} isn't installed; this command takes pip install 'vaeserve[{extra}]'"
        ) from None
