"""Calls that an asyncio task awaits."""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

import grpc
import grpc.aio

from vaeserve.transport import END, Metadata, Method

T = TypeVar("T")


class Tasks:
    """The transport of a client for asyncio; the tasks of one event loop use it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        self.lock = contextlib.nullcontext()  # between two awaits there is nobody else

    async def unary(self, method: Method, request: Any, *, timeout: float, metadata: Metadata) -> Any:
        """Make a call and wait for its response; raises grpc.RpcError."""
        return await _unless_closed(method(request, timeout=timeout, metadata=metadata))

    def start(self, method: Method, request: Any, *, timeout: float, metadata: Metadata) -> "_Call":
        """Make a call without waiting for its response."""
        return _Call(method(request, timeout=timeout, metadata=metadata))

    def stream(self, method: Method, *, metadata: Metadata) -> "_Stream":
        """Open a stream."""
        return _Stream(method, metadata)

    def signal(self) -> "_Signal":
        """Return a new signal."""
        return _Signal()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)

    async def shield(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work that goes on though its caller be cancelled."""
        return await asyncio.shield(asyncio.ensure_future(work))

    def iterate(self, items: Iterable[T] | AsyncIterable[T]) -> Any:
        """Return an iterator for `next`; raises TypeError for what has none."""
        return aiter(items) if isinstance(items, AsyncIterable) else iter(items)

    async def next(self, items: Any) -> Any:
        """Return the next of what `iterate` gave, `END` after the last."""
        return await anext(items, END) if hasattr(items, "__anext__") else next(items, END)

    async def connected(self) -> bool:
        """Tell whether there is a connection to the service."""
        return self._channel.get_state() is grpc.ChannelConnectivity.READY


async def _unless_closed(answer: Awaitable[T]) -> T:
    """Return an answer; raises UsageError, as gRPC does a moment later, where it ends with its channel.

    gRPC then cancels who waits for it, whom nobody asked to stop: a group of tasks would take it for done.
    """
    try:
        return await answer
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise grpc.aio.UsageError("Channel is closed.") from None


class _Call:
    def __init__(self, call: Any) -> None:
        self._call = call

    async def result(self) -> Any:
        return await _unless_closed(self._call)

    def cancel(self) -> None:
        self._call.cancel()


class _Signal:
    """A future and a timer: a third of what `asyncio.wait_for` costs."""

    __slots__ = ("_future", "_set")

    def __init__(self) -> None:
        self._set = False
        self._future: asyncio.Future[bool] | None = None

    def set(self) -> None:
        self._set = True
        if self._future is not None:
            _answer(self._future, True)

    async def wait(self, seconds: float) -> bool:
        if self._set:
            return True
        loop = asyncio.get_running_loop()
        self._future = loop.create_future()
        timer = loop.call_later(seconds, _answer, self._future, False)
        try:
            return await self._future
        finally:
            timer.cancel()


def _answer(future: "asyncio.Future[bool]", answer: bool) -> None:
    if not future.done():
        future.set_result(answer)


class _Stream:
    """A stream whose requests gRPC takes from a queue.

    Who waited to send would read no answers meanwhile, and a service whose answers aren't read takes no requests.
    """

    def __init__(self, method: Method, metadata: Metadata) -> None:
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._call = method(self._until_end(), metadata=metadata)

    async def _until_end(self) -> AsyncIterator[Any]:
        while (request := await self._requests.get()) is not END:
            yield request

    def send(self, request: Any) -> None:
        self._requests.put_nowait(request)

    async def receive(self, *, seconds: float) -> Any:
        async with asyncio.timeout(seconds):
            response = await _unless_closed(self._call.read())
        return END if response is grpc.aio.EOF else response

    async def finish(self, *, seconds: float) -> None:
        self._requests.put_nowait(END)
        await self.receive(seconds=seconds)

    def cancel(self) -> None:
        self._requests.put_nowait(END)
        self._call.cancel()
