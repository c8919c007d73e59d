"""Many requests of one stream at once, answered in their order."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from typing import Any, Protocol, TypeVar

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


async def in_order(
    requests: AsyncIterator[T], answer: Callable[[T], Pending[U_co]], *, most: int
) -> AsyncIterator[U_co]:
    """Yield the answer to each request, in their order, `most` of them under way or waiting to be taken at once.

    While so many are, none is read, so that whoever doesn't take answers can't send on either. The first error, of a
    request's answer or of reading it, is raised after the answers before it, and ends the others.
    """
    room = asyncio.Semaphore(most)
    answers: asyncio.Queue[Pending[U_co] | None] = asyncio.Queue()
    under_way: deque[Pending[U_co]] = deque()

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                pending = answer(request)
                under_way.append(pending)
                answers.put_nowait(pending)
                await room.acquire()
        finally:
            answers.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (pending := await answers.get()) is not None:
            yield await pending
            under_way.popleft()
            room.release()
        await reader
    finally:
        reader.cancel()
        for pending in under_way:
            pending.cancel()
        await asyncio.gather(reader, return_exceptions=True)
