"""grpcio's asyncio server as what carries the RPCs."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from vaeserve.errors import ConfigError
from vaeserve_service.access import Access
from vaeserve_service.call import Call, Metadata, Method, Service, Services
from vaeserve_service.config import ServiceConfig
from vaeserve_service.connections import channel_options
from vaeserve_service.drain import Drain
from vaeserve_service.gate import Gate
from vaeserve_service.observer import Observer
from vaeserve_service.tls import Certificates
from vaeserve_service.transport import Status, carried, parse, serialized

T = TypeVar("T")
Context: TypeAlias = "grpc.aio.ServicerContext[bytes, Message | bytes]"


class GrpcAio:
    """A `grpc.aio.Server` of the RPCs, within the limits of the settings."""

    def __init__(
        self,
        services: Services,
        *,
        config: ServiceConfig,
        observer: Observer,
        drain: Drain,
        access: Access | None = None,
        certificates: Certificates | None = None,
    ) -> None:
        self._address = config.server.address(config.server.grpc_port)
        self._certificates = certificates
        self._server = grpc.aio.server(
            interceptors=[Gate(access)] if access else None,
            options=[
                ("grpc.max_receive_message_length", config.limits.message_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server
                *channel_options(config.connections),
            ],
        )
        for name, service in services.items():
            add_service(self._server, name, service, observer=observer, drain=drain)

    def listen(self) -> int:
        """Take the port."""
        try:
            if self._certificates:
                return self._server.add_secure_port(self._address, self._certificates.grpc_credentials())
            return self._server.add_insecure_port(self._address)
        except RuntimeError:
            raise ConfigError(
                f"server.grpc_port: can't listen on {self._address}; expected a free port of this host"
            ) from None

    async def start(self) -> None:
        """Answer calls."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and end once those under way have, or after so many seconds with them."""
        await self._server.stop(grace_s)


def add_service(
    server: grpc.aio.Server, name: str, service: Service, *, observer: Observer, drain: Drain | None = None
) -> None:
    """Have a server answer the calls of a service, whose streams end in a drain."""
    drain = drain or Drain()
    observer = observer.of(service)
    handlers = {rpc: _handler(name, rpc, method, observer, drain) for rpc, method in service.methods.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
    # Registered methods have queues of their own in gRPC's core: a flood of one RPC keeps no probe from another.
    server.add_registered_method_handlers(name, handlers)


def _handler(
    service: str, rpc: str, method: Method, observer: Observer, drain: Drain
) -> "grpc.RpcMethodHandler[bytes, Message | bytes]":
    # Requests are parsed here, so that a malformed one gets the caller's code and not ours.
    async def unary(content: bytes, context: Context) -> Message | bytes:
        async def answer(call: Call) -> Message | bytes:
            response: Message | bytes = await method.handle(parse(method.request, content), call)
            return response

        return await _carry(answer, Call(service, rpc, _metadata(context)), context, observer)

    async def stream(_: object, context: Context) -> None:
        async def answer(call: Call) -> None:
            requests = _requests(method.request, context, drain)
            async with aclosing(method.handle(requests, call)) as responses:
                async for response in responses:
                    await context.write(response)

        call = Call(service, rpc, _metadata(context), on_answered=observer.answered, streaming=True)
        await _carry(answer, call, context, observer)

    if method.streaming:
        return grpc.stream_stream_rpc_method_handler(stream, response_serializer=serialized)
    return grpc.unary_unary_rpc_method_handler(unary, response_serializer=serialized)


async def _requests(request_type: type[Message], context: Context, drain: Drain) -> AsyncIterator[Message]:
    while isinstance(content := await drain.until_quiet(context.read()), bytes):  # else it is EOF, or nothing
        yield parse(request_type, content)


async def _carry(answer: Callable[[Call], Awaitable[T]], call: Call, context: Context, observer: Observer) -> T:
    """Answer a call, and end it with the code of what was raised."""

    def late() -> bool:
        remaining = context.time_remaining()
        return remaining is not None and remaining <= 0

    answered = await carried(answer, call, observer, late=late)
    if isinstance(answered, Status):
        await context.abort(answered.code, answered.message, answered.trailers)
        raise AssertionError("abort returned")
    return answered


def _metadata(context: Context) -> Callable[[], Metadata]:
    return lambda: context.invocation_metadata() or ()
