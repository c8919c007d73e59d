"""Many requests of one stream at once, answered in their order."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


async def in_order(requests: AsyncIterator[T], answer: Callable[[T], Awaitable[U]], *, most: int) -> AsyncIterator[U]:
    """Yield the answer to each request, in their order, `most` of them computed or waiting to be taken at once.

    While so many are, none is read, so that whoever doesn't take answers can't send on either. The first error, of a
    request's answer or of reading it, is raised after the answers before it, and ends the others.
    """
    room = asyncio.Semaphore(most)
    answers: asyncio.Queue[asyncio.Future[U] | None] = asyncio.Queue()
    unfinished: set[asyncio.Future[U]] = set()

    async def read() -> None:
        try:
            await room.acquire()
            async for request in requests:
                task = asyncio.ensure_future(answer(request))
                unfinished.add(task)
                answers.put_nowait(task)
                await room.acquire()
        finally:
            answers.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (next_answer := await answers.get()) is not None:
            yield await next_answer
            unfinished.discard(next_answer)
            room.release()
        await reader
    finally:
        reader.cancel()
        for task in unfinished:
            task.cancel()
        await asyncio.gather(reader, *unfinished, return_exceptions=True)
