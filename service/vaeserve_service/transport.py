"""What carries the RPCs, and what all that do share: bytes to messages, our errors to a status."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from vaeserve.errors import InternalError, InvalidInputError, OverloadedError, VaeserveError
from vaeserve.status import code_of
from vaeserve_service.call import REQUEST_ID, Call
from vaeserve_service.observer import Observer

T = TypeVar("T")
Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]

log = structlog.get_logger()

LONGEST_MESSAGE = 1000  # characters, of which gRPC makes up to twelve bytes each
# Milliseconds after which a caller whom a full queue refused may try again.
RETRY_MS = 100


class Transport(Protocol):
    """A server of the RPCs on one port."""

    def listen(self) -> int:
        """Take the configured port, or a free one for 0, and return it.

        Raises ConfigError for one that is taken.
        """
        ...

    async def start(self) -> None:
        """Answer calls."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and end once those under way have, or after so many seconds with them."""
        ...


@dataclass(frozen=True)
class Status:
    """How a call ends."""

    code: grpc.StatusCode
    message: str = ""
    trailers: Trailers = ()


class StatusError(Exception):
    """What a transport finds wrong with a message, as the status that its call ends with."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


async def carried(
    answer: Callable[[Call], Awaitable[T]], call: Call, observer: Observer, *, late: Callable[[], bool]
) -> T | Status:
    """Answer a call, observed; return what answers it, or how it ends for what was raised.

    late: whether the time of a call that is cancelled is over. Raises CancelledError for one that is.
    """
    observer.begin(call)
    try:
        answered = await answer(call)
    except asyncio.CancelledError:  # the caller went away, or its time is over
        observer.end(call, grpc.StatusCode.DEADLINE_EXCEEDED if late() else grpc.StatusCode.CANCELLED)
        raise
    except Exception as error:
        status = error.status if isinstance(error, StatusError) else _status_of(error, call)
        # Before the caller hears of it, so that whoever looks then finds it.
        observer.end(call, status.code)
        return status
    observer.end(call, grpc.StatusCode.OK)
    return answered


def _status_of(error: Exception, call: Call) -> Status:
    """Return how a call ends for an error; a defect of ours is said in full to the operator, in a word to others."""
    if isinstance(error, VaeserveError) and not isinstance(error, InternalError):
        code, message = code_of(error), clipped(str(error))
    else:
        code, message = grpc.StatusCode.INTERNAL, "internal error; the service's log has the details"
        log.error("internal error", rpc=call.rpc, model=call.model, exc_info=error)
    retry = _retry_later(message) if isinstance(error, OverloadedError) else ()
    return Status(code, message, ((REQUEST_ID, call.request_id), *retry))


def parse(request_type: type[Message], content: bytes) -> Message:
    """Return a request; raises InvalidInputError for a malformed one, whose code is so the caller's and not ours."""
    try:
        return request_type.FromString(content)
    except DecodeError:
        raise InvalidInputError(
            f"request: {len(content)} bytes that are no {request_type.DESCRIPTOR.full_name}"
        ) from None


def serialized(response: Message | bytes) -> bytes:
    """Return a response's bytes, which a handler may have made itself."""
    return response if isinstance(response, bytes) else response.SerializeToString()


def clipped(message: str) -> str:
    """Return what of a message fits in the trailers, where names may be of any length; past it gRPC says only that."""
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."


def _retry_later(message: str) -> Trailers:
    """Return the trailers that say when to try again: gRPC's own, and Google's error model, which more clients read."""
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(RETRY_MS)
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message=message)
    status.details.add().Pack(retry)
    return ("grpc-retry-pushback-ms", str(RETRY_MS)), ("grpc-status-details-bin", status.SerializeToString())
