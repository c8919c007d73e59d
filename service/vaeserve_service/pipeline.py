"""Many requests of one stream at once, answered in their order."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, NoReturn, Protocol, TypeVar

from vaeserve.errors import OverloadedError

T = TypeVar("T")
U_co = TypeVar("U_co", covariant=True)


class Pending(Protocol[U_co]):
    """An answer under way: to be awaited, or cancelled. A future is one."""

    def __await__(self) -> Generator[Any, Any, U_co]:
        """Wait for it."""
        ...

    def cancel(self) -> object:
        """Give it up."""
        ...


def _raise(_: object, error: OverloadedError) -> NoReturn:
    raise error


async def in_order(
    requests: AsyncIterator[T],
    answer: Callable[[T], Pending[U_co]],
    *,
    most: int,
    refuse: Callable[[T, OverloadedError], Pending[U_co]] = _raise,
) -> AsyncIterator[U_co]:
    """Yield the answer to each request, in their order, `most` of them under way or waiting to be taken at once.

    While so many are, none is read, so that whoever doesn't take answers can't send on either; nor while `answer`
    raises OverloadedError and others are under way, which make room; where none are, `refuse` answers. The first error,
    of a request's answer or of reading it, is raised after the answers before it, and ends the others.
    """
    under_way: deque[Pending[U_co]] = deque()
    begun, taken = asyncio.Event(), asyncio.Event()

    async def until_taken() -> None:
        taken.clear()
        await taken.wait()

    def begin(request: T) -> Pending[U_co] | None:
        """Have a request answered, or None where that must wait for room."""
        try:
            return answer(request)
        except OverloadedError as error:
            return None if under_way else refuse(request, error)

    async def read() -> None:
        try:
            async for request in requests:
                while (pending := begin(request)) is None:
                    await until_taken()
                under_way.append(pending)
                begun.set()
                while len(under_way) >= most:
                    await until_taken()
        finally:
            begun.set()

    reader = asyncio.create_task(read())
    try:
        while True:
            if under_way:
                yield await under_way[0]
                under_way.popleft()
                taken.set()
            elif reader.done():
                await reader
                return
            else:
                begun.clear()
                await begun.wait()
    finally:
        reader.cancel()
        for pending in under_way:
            pending.cancel()
        await asyncio.gather(reader, return_exceptions=True)
