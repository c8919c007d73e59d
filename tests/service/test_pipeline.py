"""Many requests of a stream at once, answered in their order."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import pytest

from vaeserve.errors import InvalidInputError, OverloadedError
from vaeserve_service.pipeline import in_order


class Source:
    """Gives numbers, and counts how many were taken."""

    def __init__(self, count: int, *, error: Exception | None = None) -> None:
        self.taken = 0
        self._count = count
        self._error = error

    async def __aiter__(self) -> AsyncIterator[int]:
        for number in range(self._count):
            self.taken += 1
            yield number
        if self._error:
            raise self._error


async def collect(answers: AsyncIterator[int], into: list[int]) -> None:
    """Take answers as long as there are."""
    async for answer in answers:
        into.append(answer)  # noqa: PERF401 - what came before an error counts


def started(answer: Callable[[int], Coroutine[Any, Any, int]]) -> Callable[[int], asyncio.Task[int]]:
    """Return what starts a task of it."""
    return lambda number: asyncio.create_task(answer(number))


async def settle() -> None:
    """Let everything that is ready on the loop run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_answers_come_in_order_though_they_end_in_another() -> None:
    """Later requests are computed beside the first, and wait for its answer."""
    gates = [asyncio.Event() for _ in range(4)]

    async def answer(number: int) -> int:
        if number:
            gates[number - 1].set()
        else:
            await gates[2].wait()
        return number

    assert [number async for number in in_order(aiter(Source(4)), started(answer), most=4)] == [0, 1, 2, 3]


async def test_no_more_are_read_than_may_wait() -> None:
    """While nobody takes the answers, no more than `most` requests are read; one more with each answer taken."""

    async def answer(number: int) -> int:
        return number

    source = Source(100)
    async with aclosing(in_order(aiter(source), started(answer), most=3)) as answers:  # type: ignore[type-var]
        assert await anext(answers) == 0
        await settle()
        assert source.taken == 3
        assert await anext(answers) == 1
        await settle()
        assert source.taken == 4


async def test_an_error_comes_after_the_answers_before_it_and_ends_the_rest() -> None:
    """What was asked before a wrong request is answered; what came after it is cancelled."""
    cancelled = asyncio.Event()

    async def answer(number: int) -> int:
        if number == 2:
            raise InvalidInputError("wrong")
        if number == 3:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        return number

    answered: list[int] = []
    with pytest.raises(InvalidInputError, match="wrong"):
        await collect(in_order(aiter(Source(10)), started(answer), most=10), answered)
    assert answered == [0, 1]
    await settle()
    assert cancelled.is_set()


async def test_an_error_in_reading_comes_after_the_answers() -> None:
    """A request that can't be read ends the stream, once those before it are answered."""

    async def answer(number: int) -> int:
        return number

    answered: list[int] = []
    source = Source(3, error=InvalidInputError("no message"))
    with pytest.raises(InvalidInputError, match="no message"):
        await collect(in_order(aiter(source), started(answer), most=10), answered)
    assert answered == [0, 1, 2]


async def test_a_full_queue_is_waited_for_while_others_make_room() -> None:
    """A stream whose own requests fill the queue sends on as they are answered, each of them once."""
    waiting: set[int] = set()

    async def computed(number: int) -> int:
        await settle()
        waiting.discard(number)
        return number

    def answer(number: int) -> asyncio.Task[int]:
        if len(waiting) == 2:
            raise OverloadedError("queue: 2 rows wait")
        waiting.add(number)
        return asyncio.create_task(computed(number))

    assert [number async for number in in_order(aiter(Source(9)), answer, most=100)] == list(range(9))


async def test_a_queue_that_others_fill_ends_the_stream() -> None:
    """With nothing under way there is nothing to wait for: the caller is told to come again later."""

    def answer(number: int) -> asyncio.Task[int]:
        raise OverloadedError(f"queue: {number} more")

    answered: list[int] = []
    with pytest.raises(OverloadedError):
        await collect(in_order(aiter(Source(3)), answer, most=10), answered)
    assert answered == []


async def test_who_leaves_takes_what_is_unfinished_along() -> None:
    """When nobody wants further answers, none is computed any more."""
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def answer(number: int) -> int:
        if number == 1:
            running.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()
        return number

    async with aclosing(in_order(aiter(Source(5)), started(answer), most=5)) as answers:  # type: ignore[type-var]
        assert await anext(answers) == 0
        await running.wait()
    await settle()
    assert cancelled.is_set()


async def test_what_finds_no_room_alone_is_refused_in_its_place() -> None:
    """With a refusal to give, a request that can't wait for others of its stream gets it, and the stream goes on."""
    refused: list[int] = []

    async def echo(number: int) -> int:
        return number

    def answer(number: int) -> asyncio.Task[int]:
        if number == 1:
            raise OverloadedError("full")
        return started(echo)(number)

    def refuse(number: int, error: OverloadedError) -> asyncio.Task[int]:
        refused.append(number)
        assert str(error) == "full"
        return started(echo)(-number)

    answers = [number async for number in in_order(aiter(Source(3)), answer, most=1, refuse=refuse)]
    assert (answers, refused) == ([0, -1, 2], [1])
