"""Calls within a deadline: made again where that is safe, and their failures as our errors."""

import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Any, Self

import grpc
import grpc.aio

from vaeserve.errors import DeadlineError, InternalError, InvalidInputError, UnavailableError, VaeserveError
from vaeserve.propagation import trace_context
from vaeserve.retries import Retry
from vaeserve.status import error_of
from vaeserve.transport import Metadata, Method, Pending, Transport

# Decades, which gRPC's clock can still tell from now.
_LONGEST_S = 1e9
# The trailer by which the service's log is searched.
REQUEST_ID = "x-request-id"


@dataclass(slots=True)
class Deadline:
    """When a call must have ended, in seconds of the monotonic clock, and why it hasn't yet."""

    at: float
    seconds: float
    why: VaeserveError | None = None

    @classmethod
    def after(cls, seconds: float) -> Self:
        """Return the deadline that is so far away; raises InvalidInputError for what is no time."""
        if not (isinstance(seconds, int | float) and 0 < seconds <= _LONGEST_S):
            raise InvalidInputError(f"timeout: {seconds!r}; expected seconds, more than 0 and at most {_LONGEST_S:g}")
        return cls(time.monotonic() + seconds, seconds)

    @property
    def remaining(self) -> float:
        """How many seconds are left; never less than none."""
        return max(0.0, self.at - time.monotonic())

    def missed(self, target: str) -> VaeserveError:
        """Return the error for who waited in vain: what kept the answer, or that it took too long."""
        said = f"{target}: no answer within {self.seconds:g} s"
        return DeadlineError(said) if self.why is None else type(self.why)(f"{said}: {self.why}")


class Calls:
    """Makes calls of one service."""

    def __init__(self, transport: Transport, *, target: str, retry: Retry | None, metadata: Metadata = ()) -> None:
        self.target = target
        self._transport = transport
        self._retry = retry
        self._metadata = metadata

    async def unary(
        self, method: Method, request: Any, deadline: Deadline, *, first: Pending | None = None, again: bool = True
    ) -> Any:
        """Return the response to a request.

        first: the first attempt, where it is under way. again: whether there may be others. Raises our errors, from
        gRPC's.
        """
        for attempt in count():
            try:
                if first is not None and not attempt:
                    return await first.result()
                return await self._transport.unary(
                    method, request, timeout=deadline.remaining, metadata=self.metadata()
                )
            except grpc.RpcError as error:
                await self.wait_or_raise(error, deadline, attempt, again=again)
            except (ValueError, grpc.aio.UsageError) as error:  # how gRPC says that its channel is closed
                raise self._closed(error) from error
        raise AssertionError("it is made again until it ends")

    async def in_order(
        self, method: Method, requests: Iterable[Any], *, seconds: float, in_flight: int
    ) -> AsyncGenerator[Any, None]:
        """Yield the response to each request, in their order, so many of them under way at once.

        seconds: what each may take.
        """
        under_way: deque[tuple[Any, Deadline, Pending]] = deque()
        try:
            for request in requests:
                deadline = Deadline.after(seconds)
                under_way.append((request, deadline, self._start(method, request, deadline)))
                if len(under_way) >= in_flight:
                    yield await self._finish(method, *under_way.popleft())
            while under_way:
                yield await self._finish(method, *under_way.popleft())
        finally:
            for _, _, pending in under_way:
                pending.cancel()

    def _start(self, method: Method, request: Any, deadline: Deadline) -> Pending:
        try:
            return self._transport.start(method, request, timeout=deadline.remaining, metadata=self.metadata())
        except (ValueError, grpc.aio.UsageError) as error:
            raise self._closed(error) from error

    async def _finish(self, method: Method, request: Any, deadline: Deadline, pending: Pending) -> Any:
        return await self.unary(method, request, deadline, first=pending)

    def metadata(self) -> Metadata:
        """Return what a call says beside its request."""
        return (*self._metadata, *trace_context())

    async def wait_or_raise(self, error: Any, deadline: Deadline, attempt: int, *, again: bool = True) -> None:
        """Wait until the next attempt; raises our error where there is to be none, at once where it would be late."""
        failure = await self.failure(error, deadline)
        delay = self._retry.delay(error, attempt) if self._retry and again else None
        if delay is None:
            raise failure from error
        if delay >= deadline.remaining:
            late = f"{failure} (after {attempt + 1} attempts; {deadline.seconds:g} s are over)"
            raise type(failure)(late if attempt else str(failure)) from error
        deadline.why = failure
        await self._transport.sleep(delay)

    async def failure(self, error: Any, deadline: Deadline) -> VaeserveError:
        """Return our error for gRPC's."""
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            if deadline.why is None and not await self._transport.connected():
                return UnavailableError(f"{self.target}: no connection within {deadline.seconds:g} s")
            return deadline.missed(self.target)
        failure = error_of(error.code(), f"{self.target}: {error.details()}")
        if isinstance(failure, InternalError):
            named = [value for key, value in error.trailing_metadata() or () if key == REQUEST_ID]
            return InternalError(f"{failure} (request {named[0]})") if named else failure
        return failure

    def _closed(self, error: Exception) -> InvalidInputError:
        return InvalidInputError(f"{self.target}: {error}; expected an open client")
