"""The client of a vaeserve service, in two forms with one surface: `Client` blocks, `AsyncClient` awaits.

with Client("localhost:8001") as client:
    scores = client.score("fraud", rows)
    rows[scores.anomalous]
"""

import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, cast

import grpc
import grpc.aio

from vaeserve.connection import Connection, Tls
from vaeserve.errors import InvalidInputError
from vaeserve.surface import Surface
from vaeserve.tasks import Tasks
from vaeserve.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT_S = 30.0
COALESCE_MS = 5.0


class AsyncClient(Surface):
    """The client for asyncio; close it, or use it as an async context manager.

    It is made within a running event loop, whose tasks may share it: gRPC binds it to that loop. Elsewhere it raises
    InvalidInputError. The arguments are those of `Client`.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = TIMEOUT_S,
        tls: Tls | None = None,
        token: str | None = None,
        allow_plaintext: bool = False,
        coalesce_ms: float = COALESCE_MS,
        retry: bool = True,
    ) -> None:
        _refuse_no_loop()
        connection = Connection.given(target, tls, token, allow_plaintext=allow_plaintext)
        credentials = connection.credentials()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=connection.options)
        else:
            self._channel = grpc.aio.secure_channel(target, credentials, options=connection.options)
        super().__init__(
            self._channel,
            Tasks(self._channel),
            connection=connection,
            timeout=timeout,
            coalesce_ms=coalesce_ms,
            retry=retry,
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _refuse_no_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise InvalidInputError("AsyncClient: made where no event loop runs; expected inside a coroutine") from None


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine gives that awaits nothing, for each of its calls blocks."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a blocking call awaited")


def _blocks(method: Callable[Concatenate[Surface, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate["Client", P], T]:
    """Return the blocking form of a method."""

    @functools.wraps(method)
    def blocking(self: "Client", *args: P.args, **kwargs: P.kwargs) -> T:
        return _run(method(self._surface, *args, **kwargs))

    return cast(Callable[Concatenate["Client", P], T], blocking)


def _iterates(
    method: Callable[Concatenate[Surface, P], AsyncIterator[T]],
) -> Callable[Concatenate["Client", P], Iterator[T]]:
    """Return the blocking form of a method that yields."""

    @functools.wraps(method)
    def iterating(self: "Client", *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        items = cast(AsyncGenerator[T, None], method(self._surface, *args, **kwargs))
        try:
            while True:
                try:
                    item = _run(anext(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            _run(items.aclose())

    return cast(Callable[Concatenate["Client", P], Iterator[T]], iterating)


class Client:
    """The client that blocks; close it, or use it as a context manager. Threads may share one.

    target: HOST:PORT, or `dns:///HOST:PORT`, whose addresses are called in turn. timeout: the seconds that a call may
    take, retries and all. tls: whom to trust, and a certificate to show; without it nothing is encrypted. token: what
    to be known by; it crosses no network without TLS unless allow_plaintext. What isn't given of these is taken from
    the environment, `VAESERVE_CLIENT_TLS_CA`, `VAESERVE_CLIENT_TOKEN` and so on.
    coalesce_ms: how long a call of few rows may wait for others that are made at once, to be sent with them, while one
    like it is under way; 0 joins none. retry: whether a call that the service couldn't take is made again.
    Raises ConfigError for a file that can't be read, or a token that would be seen by others.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout: float = TIMEOUT_S,
        tls: Tls | None = None,
        token: str | None = None,
        allow_plaintext: bool = False,
        coalesce_ms: float = COALESCE_MS,
        retry: bool = True,
    ) -> None:
        connection = Connection.given(target, tls, token, allow_plaintext=allow_plaintext)
        credentials = connection.credentials()
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=connection.options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=connection.options)
        self._surface = Surface(
            self._channel,
            Threads(self._channel),
            connection=connection,
            timeout=timeout,
            coalesce_ms=coalesce_ms,
            retry=retry,
        )

    score = _blocks(Surface.score)
    score_stream = _iterates(Surface.score_stream)
    encode = _blocks(Surface.encode)
    decode = _blocks(Surface.decode)
    reconstruct = _blocks(Surface.reconstruct)
    generate = _blocks(Surface.generate)
    interpolate = _blocks(Surface.interpolate)
    models = _blocks(Surface.models)
    model = _blocks(Surface.model)
    health = _blocks(Surface.health)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
