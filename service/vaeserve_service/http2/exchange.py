"""A gRPC call on a stream: the messages of its request to its method's handler, the handler's to its answer."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.message import Message
from grpc import StatusCode

from vaeserve.errors import InvalidInputError
from vaeserve_service.call import Call, Method
from vaeserve_service.drain import Drain
from vaeserve_service.http2.frames import Code
from vaeserve_service.http2.head import Head
from vaeserve_service.http2.inflow import Inflow
from vaeserve_service.http2.messages import HEADER, OK, Messages, framed, inflated, only_trailer, trailer
from vaeserve_service.http2.stream import WINDOW, Stream
from vaeserve_service.observer import Observer
from vaeserve_service.transport import Status, StatusError, carried, parse, serialized

# Requests of a stream that are read in one turn of the event loop, for the other calls' sake.
_TURN = 16

_LATE = Status(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
_CANCELLED = Status(StatusCode.CANCELLED, "the call was cancelled here; the service's log may have the reason")
_FINE = Status(StatusCode.OK)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a method's calls go, and who sees them."""

    service: str
    rpc: str
    method: Method
    observer: Observer
    drain: Drain
    message_bytes: int


class Exchange(ABC):
    """A call under way; it ends by an answer, by a fault, by its time, or as nobody waits for it any more."""

    def __init__(self, stream: Stream, head: Head, route: Route, *, inflow: Inflow) -> None:
        self._stream = stream
        self._head = head
        self._route = route
        self._inflow = inflow
        self._messages = Messages(most_bytes=route.message_bytes)
        self._unreturned = 0  # bytes that came, and in whose place no others may yet
        self._loop = asyncio.get_running_loop()
        self._has_begun = False
        self._has_finished = False
        self._is_late = False
        self._task: asyncio.Task[None] | None = None
        self._timer = None if head.timeout_s is None else self._loop.call_later(head.timeout_s, self._expire)

    def receive(self, content: bytes, size: int) -> None:
        """Take some data."""
        self._unreturned += size
        try:
            self._messages.feed(content)
        except StatusError as error:
            self.refuse(error.status)
            return
        self._ask()
        self._came()

    @abstractmethod
    def end(self) -> None:
        """Hear that the request is whole."""

    def close(self) -> None:
        """Hear that the stream has ended."""
        self._inflow.settle(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and not self._has_finished:
            self._task.cancel()

    def let_on(self, size: int) -> None:
        """Let so many bytes more of a message come."""
        self._unreturned -= size
        self._stream.give_back(size)

    def refuse(self, status: Status) -> None:
        """End with a status, whatever is under way."""
        if self._task is not None:
            self._task.cancel()
        self._finish(status)

    @abstractmethod
    def _came(self) -> None:
        """See what has come."""

    @abstractmethod
    async def _answer(self, call: Call) -> bytes:
        """Answer, and return what of that is still to be sent."""

    def _ask(self) -> None:
        """Ask for the rest of a message that is larger than the window."""
        if not self._messages.is_whole and self._unreturned >= WINDOW // 2:
            self._inflow.ask(self, self._unreturned)

    def _start(self, call: Call) -> None:
        self._task = self._loop.create_task(self._run(call))

    async def _run(self, call: Call) -> None:
        try:
            answered = await carried(self._answer, call, self._route.observer, late=lambda: self._is_late)
        except asyncio.CancelledError:
            self._finish(_CANCELLED)  # which is heard only if it was neither the caller's doing nor the time's
            raise
        if isinstance(answered, Status):
            self._finish(answered)
        else:
            self._finish(_FINE, answered)

    async def _next(self) -> Message:
        """Take the first message of the request, and let others come in its place."""
        compressed, content = self._messages.take()
        self._inflow.settle(self)
        returned = self._unreturned - len(self._messages)
        self._unreturned -= returned
        self._stream.give_back(returned)
        self._ask()
        if compressed:
            # On a thread: it may be a thousand times as much.
            most, encoding = self._route.message_bytes, self._head.encoding
            content = await asyncio.to_thread(
                inflated, content, compressed=compressed, encoding=encoding, most_bytes=most
            )
        return parse(self._route.method.request, content)

    def _finish(self, status: Status, content: bytes = b"") -> None:
        """End the stream with what is still to be sent, and a status."""
        if self._has_finished:
            return
        self._has_finished = True
        if content or self._has_begun:
            self._send(content)
            self._stream.finish(OK if status is _FINE else trailer(status))
        else:
            self._stream.finish(only_trailer(status))

    def _send(self, content: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._stream.start(HEADER)
        if content:
            self._stream.send(content)

    def _expire(self) -> None:
        """End, as the time is over; what is written and waits to be taken is of no use any more."""
        self._is_late = True
        if self._has_finished or self._stream.waiting:
            self._stream.reset(Code.CANCEL)
        else:
            self.refuse(_LATE)


class Unary(Exchange):
    """A call of one message, which is answered by one."""

    def end(self) -> None:
        """Answer, as the request is whole."""
        if not self._messages.is_whole:
            self._refuse_count("a part of one" if self._messages else "none")
            return
        head = self._head
        self._start(Call(self._route.service, self._route.rpc, lambda: head.metadata))

    def _came(self) -> None:
        if self._messages.has_more:
            self._refuse_count("more than one")

    async def _answer(self, call: Call) -> bytes:
        request = await self._next()
        return framed(serialized(await self._route.method.handle(request, call)))

    def _refuse_count(self, said: str) -> None:
        self.refuse(Status(StatusCode.INVALID_ARGUMENT, f"messages: {said} in a request; expected one"))


class Streaming(Exchange):
    """A call of any number of messages, answered by any number as they come."""

    def __init__(self, stream: Stream, head: Head, route: Route, *, inflow: Inflow) -> None:
        super().__init__(stream, head, route, inflow=inflow)
        self._is_whole = False
        self._more: asyncio.Future[bool] | None = None
        observer = route.observer
        self._start(
            Call(route.service, route.rpc, lambda: head.metadata, on_answered=observer.answered, streaming=True)
        )

    def end(self) -> None:
        """Let the requests end."""
        self._is_whole = True
        self._wake()

    def _came(self) -> None:
        if self._messages.is_whole:
            self._wake()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(True)

    async def _answer(self, call: Call) -> bytes:
        stream, route = self._stream, self._route
        async with (
            aclosing(self._requests()) as requests,
            aclosing(route.method.handle(requests, call)) as responses,
        ):
            async for response in responses:
                self._send(framed(serialized(response)))
                if stream.is_full:
                    await stream.until_room()
        return b""

    async def _requests(self) -> AsyncGenerator[Message, None]:
        """Yield the requests; who doesn't take them lets no more come."""
        taken = 0
        while True:
            while self._messages.is_whole:
                yield await self._next()
                taken += 1
                if not taken % _TURN:
                    await asyncio.sleep(0)
            if self._is_whole:
                break
            self._more = self._loop.create_future()
            if not await self._route.drain.until_quiet(self._more):
                return
        if self._messages:
            raise InvalidInputError("messages: the last one is cut off; expected all of it")
