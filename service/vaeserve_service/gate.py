"""grpc.aio's side of access: calls are let through to their handlers, or refused in the handlers' stead."""

import inspect
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
import grpc.aio

from vaeserve_service.access import Access, Denial
from vaeserve_service.config import Scope

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Gate(grpc.aio.ServerInterceptor):
    """Lets calls through to their handlers, or refuses them in the handler's stead.

    A token is decided on before the request is read. A certificate is seen only where a handler is.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return the handler of a call, or one that refuses it."""
        service, _, rpc = handler_call_details.method.removeprefix("/").rpartition("/")
        scope = self._access.needed(service, rpc)
        if scope is None:
            return await continuation(handler_call_details)
        authorization = [value for key, value in handler_call_details.invocation_metadata if key == "authorization"]
        if authorization or not self._access.asks_clients:
            denial = self._access.by_token(scope, authorization)
            return _refusing(denial) if denial else await continuation(handler_call_details)
        handler = await continuation(handler_call_details)
        return _guarded(handler, self._access, scope) if handler else None


def _refusing(denial: Denial) -> Handler:
    """Return a handler that refuses; as one of streamed requests, so that gRPC reads none before it."""

    async def refuse(_: Any, context: Context) -> None:
        await context.abort(denial.code, denial.message)

    return grpc.stream_unary_rpc_method_handler(refuse)


def _guarded(handler: Handler, access: Access, scope: Scope) -> Handler:
    """Return a handler that looks at the caller's certificate first."""
    kind = f"{_arity(handler.request_streaming)}_{_arity(handler.response_streaming)}"
    behavior = getattr(handler, kind)

    async def check(context: Context) -> None:
        denial = access.by_certificate(scope, context.peer_identities() or ())
        if denial:
            await context.abort(denial.code, denial.message)

    async def answer(request: Any, context: Context) -> Any:
        await check(context)
        return await behavior(request, context)

    async def stream(request: Any, context: Context) -> Any:
        await check(context)
        async with aclosing(behavior(request, context)) as responses:
            async for response in responses:
                yield response

    make = getattr(grpc, f"{kind}_rpc_method_handler")
    guarded = stream if inspect.isasyncgenfunction(behavior) else answer
    made: Handler = make(guarded, handler.request_deserializer, handler.response_serializer)
    return made


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"
