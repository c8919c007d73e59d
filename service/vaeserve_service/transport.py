"""grpc.aio's side of the seam: bytes to messages, our errors to codes, every call counted."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Mapping
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from vaeserve.errors import InternalError, InvalidInputError, OverloadedError, VaeserveError
from vaeserve.status import code_of
from vaeserve_service.metrics import Metrics

log = structlog.get_logger()

LONGEST_MESSAGE = 1000  # characters, of which gRPC makes up to six bytes each
# Milliseconds after which a caller whom a full queue refused may try again.
RETRY_MS = 100


def generic_handler(
    service: str,
    methods: Mapping[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]],
    *,
    models: Container[str],
    metrics: Metrics,
) -> grpc.GenericRpcHandler:
    """Return gRPC's handler of a service's unary methods; `models` are the names that a metric's label may have."""
    return grpc.method_handlers_generic_handler(
        service,
        {
            name: grpc.unary_unary_rpc_method_handler(
                _unary(name, request_type, handle, models=models, metrics=metrics),
                # Requests are parsed below, so that a malformed one gets the caller's code and not ours.
                response_serializer=lambda response: response.SerializeToString(),
            )
            for name, (request_type, handle) in methods.items()
        },
    )


def _unary(
    rpc: str,
    request_type: type[Message],
    handle: Callable[[Any], Awaitable[Message]],
    *,
    models: Container[str],
    metrics: Metrics,
) -> Callable[[bytes, "grpc.aio.ServicerContext[bytes, Message]"], Awaitable[Message]]:
    async def call(content: bytes, context: "grpc.aio.ServicerContext[bytes, Message]") -> Message:
        metrics.started()
        started = time.perf_counter()
        model = version = ""
        # What a call ends with unless it is answered: its caller went away.
        code = grpc.StatusCode.CANCELLED
        try:
            request = _parse(request_type, content)
            model = _label(request, models)
            response = await handle(request)
            version = _version(response)
            code = grpc.StatusCode.OK
            return response
        except VaeserveError as error:
            code = code_of(error)
            if isinstance(error, InternalError):
                log.error("internal error", rpc=rpc, model=model, exc_info=error)
            if isinstance(error, OverloadedError):
                context.set_trailing_metadata(_retry_later(_clipped(str(error))))
            await context.abort(code, _clipped(str(error)))
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            if remaining is not None and remaining <= 0:
                code = grpc.StatusCode.DEADLINE_EXCEEDED
            raise
        except Exception as error:  # a defect of ours: said in full to the operator, and in a word to the caller
            code = grpc.StatusCode.INTERNAL
            log.error("internal error", rpc=rpc, model=model, exc_info=error)
            await context.abort(code, "internal error; the service's log has the details")
        finally:
            metrics.answered(rpc, model, version, code.name, time.perf_counter() - started)
        raise AssertionError("abort returned")

    return call


def _clipped(message: str) -> str:
    """Return what fits in the trailers, whatever a caller's names were: past their limit gRPC tells of that instead."""
    return message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}..."


def _retry_later(message: str) -> tuple[tuple[str, str | bytes], ...]:
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


def _label(request: Any, models: Container[str]) -> str:
    """Return the model's name where it is one that is served: callers can't add labels."""
    name = request.model.name if "model" in request.DESCRIPTOR.fields_by_name else ""
    return name if name in models else ""


def _version(response: Any) -> str:
    return response.model.version if "model" in response.DESCRIPTOR.fields_by_name else ""
