"""A gRPC call on a stream: the messages of its request to its method's handler, the handler's to its answer."""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

from google.protobuf.message import Message
from grpc import StatusCode

from vaeserve.errors import InvalidInputError
from vaeserve_service.call import Call, Method
from vaeserve_service.drain import Drain
from vaeserve_service.http2.head import Head
from vaeserve_service.http2.inflow import Inflow
from vaeserve_service.http2.messages import HEADER, OK, MessageError, Messages, framed, only_trailer, trailer
from vaeserve_service.http2.stream import Stream
from vaeserve_service.observer import Observer
from vaeserve_service.transport import Status, carried, parse, serialized

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
        self._messages = Messages(encoding=head.encoding, most_bytes=route.message_bytes)
        self._loop = asyncio.get_running_loop()
        self._is_late = False
        self._has_begun = False
        self._task: asyncio.Task[None] | None = None
        self._timer = None if head.timeout_s is None else self._loop.call_later(head.timeout_s, self._expire)

    def receive(self, content: bytes, size: int) -> None:
        """Take some data."""
        try:
            for message in self._messages.feed(content):
                self._take(message)
        except MessageError as fault:
            self.refuse(fault.status)
        else:
            self._taken(size)

    @abstractmethod
    def end(self) -> None:
        """Hear that the request is whole."""

    def abandon(self) -> None:
        """Hear that nobody waits for an answer any more."""
        self._release()
        if self._task is not None:
            self._task.cancel()

    def refuse(self, status: Status) -> None:
        """End with a status, whatever is under way."""
        self._finish(status)
        if self._task is not None:
            self._task.cancel()

    @abstractmethod
    def _take(self, message: bytes) -> None:
        """Take a message of the request."""

    @abstractmethod
    def _taken(self, size: int) -> None:
        """See to it that more comes, after so many bytes."""

    @abstractmethod
    async def _answer(self, call: Call) -> bytes:
        """Answer, and return what of that is still to be sent."""

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

    def _finish(self, status: Status, content: bytes = b"") -> None:
        """End the stream with what is still to be sent, and a status."""
        self._release()
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
        self._is_late = True
        self.refuse(_LATE)

    def _release(self) -> None:
        """Hold nothing any more that the end of the call frees."""
        self._inflow.release(self._stream)
        if self._timer is not None:
            self._timer.cancel()


class Unary(Exchange):
    """A call of one message, which is answered by one."""

    def __init__(self, stream: Stream, head: Head, route: Route, *, inflow: Inflow) -> None:
        super().__init__(stream, head, route, inflow=inflow)
        self._request: bytes | None = None

    def end(self) -> None:
        """Answer, as the request is whole."""
        if self._request is None or self._messages.is_within:
            self._refuse_count("a part of one" if self._messages.is_within else "none")
            return
        self._start(Call(self._route.service, self._route.rpc, lambda: self._head.metadata))

    def _take(self, message: bytes) -> None:
        if self._request is not None or self._messages.is_within:
            self._refuse_count("more than one")
        self._request = message
        self._inflow.release(self._stream)

    def _taken(self, size: int) -> None:
        if self._messages.is_within:
            self._inflow.hold(self._stream, size)

    async def _answer(self, call: Call) -> bytes:
        method = self._route.method
        request, self._request = self._request or b"", None
        return framed(serialized(await method.handle(parse(method.request, request), call)))

    def _refuse_count(self, said: str) -> None:
        self.refuse(Status(StatusCode.INVALID_ARGUMENT, f"messages: {said} in a request; expected one"))


class Streaming(Exchange):
    """A call of any number of messages, answered by any number as they come."""

    def __init__(self, stream: Stream, head: Head, route: Route, *, inflow: Inflow) -> None:
        super().__init__(stream, head, route, inflow=inflow)
        self._unread: deque[bytes] = deque()
        self._sizes: deque[int] = deque()  # of the data that each brought: given back as it is read
        self._is_whole = False
        self._more: asyncio.Future[None] | None = None
        observer = route.observer
        self._start(
            Call(route.service, route.rpc, lambda: head.metadata, on_answered=observer.answered, streaming=True)
        )

    def end(self) -> None:
        """Let the requests end."""
        self._is_whole = True
        self._wake()

    def _take(self, message: bytes) -> None:
        self._unread.append(message)
        self._sizes.append(0)
        self._inflow.release(self._stream)

    def _taken(self, size: int) -> None:
        if self._unread:
            self._sizes[-1] += size
            self._wake()
        else:
            self._inflow.hold(self._stream, size)

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    async def _answer(self, call: Call) -> bytes:
        out = self._stream.out
        requests = self._route.drain.until_quiet(self._requests())
        async with aclosing(self._route.method.handle(requests, call)) as responses:
            async for response in responses:
                self._send(framed(serialized(response)))
                if out.is_full:
                    await out.until_room()
        return b""

    async def _requests(self) -> AsyncIterator[Message]:
        """Yield the requests; who doesn't take them lets no more come."""
        while True:
            while self._unread:
                content = self._unread.popleft()
                self._stream.give_back(self._sizes.popleft())
                yield parse(self._route.method.request, content)
            if self._is_whole:
                break
            self._more = self._loop.create_future()
            await self._more
        if self._messages.is_within:
            raise InvalidInputError("messages: the last one is cut off; expected all of it")
