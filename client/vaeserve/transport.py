"""What differs between threads and asyncio, as narrow as it can be: all else of a client is written once, above it.

The coroutines above await nothing but these. Where calls block, they never suspend, so that a plain `send(None)` runs
them from end to end, without an event loop.
"""

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Metadata = tuple[tuple[str, str], ...]

# A stub's method, for each kind of call.
Method = Callable[..., Any]

END: Any = object()


class Signal(Protocol):
    """What one caller waits for and another gives, once."""

    def set(self) -> None:
        """Wake who waits, or will."""
        ...

    async def wait(self, seconds: float) -> bool:
        """Wait for so long at most; tell whether it was set."""
        ...


class Pending(Protocol):
    """A call under way."""

    async def result(self) -> Any:
        """Wait for its response; raises grpc.RpcError."""
        ...

    def cancel(self) -> object:
        """Give it up."""
        ...


class Stream(Protocol):
    """An open stream of requests and their responses."""

    def send(self, request: Any) -> None:
        """Have a request sent once there is room; how many wait for it, the sender bounds."""
        ...

    async def receive(self, *, seconds: float) -> Any:
        """Wait for the next response, `END` where there is none to come; raises grpc.RpcError and TimeoutError."""
        ...

    async def finish(self, *, seconds: float) -> None:
        """Say that no request follows, and wait for the end; raises as `receive` does."""
        ...

    def cancel(self) -> None:
        """Give up what is left of it."""
        ...


class Transport(Protocol):
    """Calls, and waiting, by threads or by tasks."""

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """What keeps other threads out of a few lines that wait for nothing."""
        ...

    async def unary(self, method: Method, request: Any, *, timeout: float, metadata: Metadata) -> Any:
        """Make a call and wait for its response; raises grpc.RpcError."""
        ...

    def start(self, method: Method, request: Any, *, timeout: float, metadata: Metadata) -> Pending:
        """Make a call without waiting for its response."""
        ...

    def stream(self, method: Method, *, metadata: Metadata) -> Stream:
        """Open a stream."""
        ...

    def signal(self) -> Signal:
        """Return a new signal."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...

    async def shield(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work that goes on though its caller be cancelled."""
        ...

    async def next(self, items: Any) -> Any:
        """Return the next of what `iterate` gave, `END` after the last."""
        ...

    def iterate(self, items: Iterable[T] | AsyncIterable[T]) -> Any:
        """Return an iterator for `next`; raises TypeError for what has none."""
        ...

    async def connected(self) -> bool:
        """Tell whether there is a connection to the service."""
        ...
