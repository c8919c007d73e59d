"""The end of open streams as the service drains."""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

# Seconds for which the caller of an open stream has nothing to ask before it ends.
QUIET_S = 1.0


class Drain:
    """Whether the service drains, and the streams that wait for a request: idle ones mustn't hold it."""

    def __init__(self) -> None:
        self._begun = False
        self._waits: set[asyncio.Timeout] = set()

    def begin(self) -> None:
        """Give the streams that wait a moment more."""
        self._begun = True
        for wait in self._waits:
            wait.reschedule(asyncio.get_running_loop().time() + QUIET_S)

    async def until_quiet(self, request: Awaitable[T]) -> T | None:
        """Wait for a stream's next request; in a drain, return None where none comes for a moment.

        A caller that has still sent some has them answered, instead of an end that says OK after half of the answers.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_S if self._begun else None) as wait:
                self._waits.add(wait)
                try:
                    return await request
                finally:
                    self._waits.discard(wait)
        return None
