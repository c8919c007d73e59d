"""grpc.aio's side of the seam: bytes to messages, our errors to codes, every call observed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from vaeserve.errors import InternalError, InvalidInputError, OverloadedError, VaeserveError
from vaeserve.status import code_of
from vaeserve_service.call import REQUEST_ID, Call, Metadata, Method
from vaeserve_service.drain import Drain
from vaeserve_service.observer import Observer

T = TypeVar("T")
Trailers: TypeAlias = tuple[tuple[str, str | bytes], ...]
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, Message | bytes]"

log = structlog.get_logger()

LONGEST_MESSAGE = 1000  # characters, of which gRPC makes up to six bytes each
# Milliseconds after which a caller whom a full queue refused may try again.
RETRY_MS = 100


def generic_handler(
    service: str, methods: Mapping[str, Method], *, observer: Observer, drain: Drain | None = None
) -> grpc.GenericRpcHandler:
    """Return gRPC's handler of a service's methods, whose streams end in a drain."""
    drain = drain or Drain()
    handlers = {name: _handler(service, name, method, observer, drain) for name, method in methods.items()}
    return grpc.method_handlers_generic_handler(service, handlers)


def _handler(
    service: str, rpc: str, method: Method, observer: Observer, drain: Drain
) -> "grpc.RpcMethodHandler[bytes, Message | bytes]":
    # Requests are parsed here, so that a malformed one gets the caller's code and not ours.
    async def unary(content: bytes, context: Context) -> Message | bytes:
        async def answer(call: Call) -> Message | bytes:
            response: Message | bytes = await method.handle(_parse(method.request, content), call)
            return response

        return await _carry(answer, Call(service, rpc, _metadata(context)), context, observer)

    async def stream(_: object, context: Context) -> None:
        async def answer(call: Call) -> None:
            requests = drain.until_quiet(_requests(method.request, context))
            async with aclosing(method.handle(requests, call)) as responses:
                async for response in responses:
                    await context.write(response)

        call = Call(service, rpc, _metadata(context), on_answered=observer.answered, streaming=True)
        await _carry(answer, call, context, observer)

    if method.streaming:
        return grpc.stream_stream_rpc_method_handler(stream, response_serializer=_serialized)
    return grpc.unary_unary_rpc_method_handler(unary, response_serializer=_serialized)


async def _requests(request_type: type[Message], context: Context) -> AsyncIterator[Message]:
    while isinstance(content := await context.read(), bytes):  # else it is EOF
        yield _parse(request_type, content)


async def _carry(answer: Callable[[Call], Awaitable[T]], call: Call, context: Context, observer: Observer) -> T:
    """Answer a call, observed, and end it with the code of what was raised."""
    observer.begin(call)
    retry: Trailers = ()
    try:
        answered = await answer(call)
    except asyncio.CancelledError:  # the caller went away, or its time is over
        remaining = context.time_remaining()
        late = remaining is not None and remaining <= 0
        observer.end(call, grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED)
        raise
    except Exception as error:
        if isinstance(error, VaeserveError) and not isinstance(error, InternalError):
            code, message = code_of(error), clipped(str(error))
        else:  # a defect of ours: said in full to the operator, and in a word to the caller
            code, message = grpc.StatusCode.INTERNAL, "internal error; the service's log has the details"
            log.error("internal error", rpc=call.rpc, model=call.model, exc_info=error)
        if isinstance(error, OverloadedError):
            retry = _retry_later(message)
    else:
        observer.end(call, grpc.StatusCode.OK)
        return answered
    # Before the caller hears of it, so that whoever looks then finds it.
    observer.end(call, code)
    await context.abort(code, message, ((REQUEST_ID, call.request_id), *retry))
    raise AssertionError("abort returned")


def _metadata(context: Context) -> Callable[[], Metadata]:
    return lambda: context.invocation_metadata() or ()


def _serialized(response: Message | bytes) -> bytes:
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


def _parse(request_type: type[Message], content: bytes) -> Message:
    try:
        return request_type.FromString(content)
    except DecodeError:
        raise InvalidInputError(
            f"request: {len(content)} bytes that are no {request_type.DESCRIPTOR.full_name}"
        ) from None
