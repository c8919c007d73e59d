"""Scores of batches without end over a stream: in order, in bounded memory, resumed where it breaks."""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import grpc
import grpc.aio

from vaeserve.calls import Calls, Deadline
from vaeserve.errors import CallerError, InternalError, InvalidInputError, NotFoundError, VaeserveError
from vaeserve.messages import read_scores
from vaeserve.parts import joined
from vaeserve.scores import Scores
from vaeserve.transport import END, Method, Stream, Transport

# Cuts a batch into requests, one or more.
Requests = Callable[[Any], Iterator[Any]]
Renew = Callable[[], Awaitable[bool]]

# What a message calls a batch, by its position.
Name = Callable[[int], str]

# Between streams that end at once.
_PAUSE_S = 0.1
# For the end of a stream whose answers are all here.
_FINISH_S = 1.0


@dataclass(frozen=True, slots=True)
class _Part:
    """A request, of which batch it is, and whether it is that one's last."""

    request: Any
    batch: int
    last: bool


class ScoreStream:
    """A ScoreStream that is opened anew where it breaks, with what isn't answered yet.

    methods: of the stream, and of one request. in_flight: how many requests are sent ahead of their answers; as many
    are kept. seconds: how long each answer may take, and the service be away.
    """

    def __init__(
        self,
        calls: Calls,
        transport: Transport,
        *,
        methods: tuple[Method, Method],
        in_flight: int,
        seconds: float,
        name: Name = "batches[{}]: ".format,
    ) -> None:
        self._calls = calls
        self._transport = transport
        self._streamed, self._unary = methods
        self._in_flight = in_flight
        self._seconds = seconds
        self._name = name
        self._sent: deque[_Part] = deque()
        self._stream: Stream | None = None

    async def scores(self, batches: Any, requests: Requests, renew: Renew) -> AsyncGenerator[Scores, None]:
        """Yield the scores of each batch, all of it by one version.

        renew: is asked, where the model isn't there any more, whether `requests` now makes requests of another version.
        What is wrong with a batch, or with the iterator of them, is raised after the scores of those before it.
        """
        parts = _Parts(self._transport, batches, requests, self._name)
        answered: list[Scores] = []
        try:
            while (part := await self._fill(parts)) is not None:
                try:
                    answered.append(read_scores(await self._answer(part)))
                except NotFoundError:
                    if not await renew():
                        raise
                    self._close()
                    self._sent.clear()
                    parts.cut_again()
                    answered = []
                    continue
                if part.last:
                    parts.answered()
                    yield joined(answered)
                    answered = []
            await self._finish()
        finally:
            self._close()
        if parts.failure is not None:
            raise parts.failure

    async def _fill(self, parts: "_Parts") -> _Part | None:
        """Send as many as may be under way; return the oldest that isn't answered, None if none is left."""
        while len(self._sent) < self._in_flight and (part := await parts.next()) is not None:
            self._sent.append(part)
            if self._stream is not None:
                self._stream.send(part.request)
        return self._sent[0] if self._sent else None

    async def _answer(self, part: _Part) -> Any:
        """Return the answer to the oldest request; where the stream breaks, by another one."""
        deadline = Deadline.after(self._seconds)
        attempt = 0
        while True:
            try:
                response = await self._receive(deadline)
                if response is END:  # as a service that stops does to a stream, once it is idle
                    self._close()
                    await self._transport.sleep(min(attempt * _PAUSE_S, deadline.remaining))
            except TimeoutError:
                raise deadline.missed(self._calls.target) from None
            except grpc.RpcError as error:
                self._close()
                response = await self._judged(error, part, deadline, attempt)
            except (ValueError, grpc.aio.UsageError) as error:
                raise InvalidInputError(f"{self._calls.target}: {error}; expected an open client") from error
            if response is not END:
                self._sent.popleft()
                return response
            attempt += 1

    async def _receive(self, deadline: Deadline) -> Any:
        if self._stream is None:
            self._stream = self._transport.stream(self._streamed, metadata=self._calls.metadata())
            for part in self._sent:
                self._stream.send(part.request)
        return await self._stream.receive(seconds=deadline.remaining)

    async def _judged(self, error: Any, part: _Part, deadline: Deadline, attempt: int) -> Any:
        """Return the answer to the oldest request by a call of its own, or `END` once the stream may be opened again.

        A stream ends with the first fault of any request, and may take with it answers to those before. Where it ends
        as gRPC's asyncio client writes, that client says INTERNAL, whatever the service has said. Raises the oldest's
        own fault.
        """
        if not isinstance(await self._calls.failure(error, deadline), CallerError | InternalError):
            await self._calls.wait_or_raise(error, deadline, attempt)
            return END
        try:
            return await self._calls.unary(self._unary, part.request, deadline)
        except (CallerError, InternalError) as fault:
            raise type(fault)(f"{self._name(part.batch)}{fault}") from error

    async def _finish(self) -> None:
        """End the stream in order, so that no call counts as cancelled; all that was asked for is here."""
        if self._stream is not None:
            with suppress(grpc.RpcError, TimeoutError):
                await self._stream.finish(seconds=_FINISH_S)

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()


class _Parts:
    """The requests of batches, one after the other; the batches' own failure is kept, and ends them."""

    def __init__(self, transport: Transport, batches: Any, requests: Requests, name: Name) -> None:
        self._transport = transport
        try:
            self._batches = transport.iterate(batches)
        except TypeError:
            kind = type(batches).__name__
            raise InvalidInputError(f"batches: a {kind}; expected an iterable of batches of rows") from None
        self._requests = requests
        self._name = name
        self._parts: Iterator[_Part] = iter(())
        self._taken = 0
        self._unanswered: deque[Any] = deque()
        self._ended = False
        self.failure: Exception | None = None

    async def next(self) -> _Part | None:
        """Return the next request; None after the last."""
        try:
            part = next(self._parts, None)
            return part if part is not None or self._ended else await self._next_batch()
        except Exception as error:  # whatever the caller's iterator raises is the caller's
            self._ended, self.failure = True, error
            return None

    def answered(self) -> None:
        """Forget the oldest batch."""
        self._unanswered.popleft()

    def cut_again(self) -> None:
        """Make requests anew of all batches that aren't answered."""
        oldest = self._taken - len(self._unanswered)
        batches = list(enumerate(self._unanswered, oldest))
        self._parts = chain.from_iterable(self._cut(batch, position) for position, batch in batches)

    async def _next_batch(self) -> _Part | None:
        batch = await self._transport.next(self._batches)
        if batch is END:
            self._ended = True
            return None
        self._unanswered.append(batch)
        self._parts = self._cut(batch, self._taken)
        self._taken += 1
        return next(self._parts)

    def _cut(self, batch: Any, position: int) -> Iterator[_Part]:
        """Yield a batch's requests as they are needed, for together they may be large."""
        try:
            requests = iter(self._requests(batch))
            request = next(requests)
            for following in requests:
                yield _Part(request, position, last=False)
                request = following
            yield _Part(request, position, last=True)
        except VaeserveError as error:
            raise type(error)(f"{self._name(position)}{error}") from error
