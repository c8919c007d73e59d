"""Calls that block the thread that makes them."""

import threading
import time
from collections.abc import AsyncIterable, Coroutine, Iterable
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import grpc

from vaeserve.transport import END, Metadata, Method

T = TypeVar("T")

# Within which gRPC says how a channel is; it does so at once.
_STATE_S = 1.0


class Threads:
    """The transport of a client that blocks; any thread may use it."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.lock = threading.Lock()

    async def unary(self, method: Method, request: Any, *, timeout: float, metadata: Metadata) -> Any:
        """Make a call and wait for its response; raises grpc.RpcError."""
        return method(request, timeout=timeout, metadata=metadata)

    def start(self, method: Any, request: Any, *, timeout: float, metadata: Metadata) -> "_Future":
        """Make a call without waiting for its response."""
        return _Future(method.future(request, timeout=timeout, metadata=metadata))

    def stream(self, method: Method, *, metadata: Metadata) -> "_Stream":
        """Open a stream."""
        return _Stream(method, metadata)

    def signal(self) -> "_Signal":
        """Return a new signal."""
        return _Signal()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    async def shield(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work; nobody cancels a thread."""
        return await work

    def iterate(self, items: Iterable[T] | AsyncIterable[T]) -> Any:
        """Return an iterator for `next`; raises TypeError for what has none, or one that must be awaited."""
        return iter(cast(Iterable[T], items))

    async def next(self, items: Any) -> Any:
        """Return the next of what `iterate` gave, `END` after the last."""
        return next(items, END)

    async def connected(self) -> bool:
        """Tell whether there is a connection to the service."""
        states: SimpleQueue[grpc.ChannelConnectivity] = SimpleQueue()
        self._channel.subscribe(states.put)
        try:
            return states.get(timeout=_STATE_S) is grpc.ChannelConnectivity.READY
        finally:
            self._channel.unsubscribe(states.put)


class _Future:
    def __init__(self, future: Any) -> None:
        self._future = future

    async def result(self) -> Any:
        return self._future.result()

    def cancel(self) -> None:
        self._future.cancel()


class _Signal:
    """A bare lock, held until it is set: a tenth of what an Event costs."""

    __slots__ = ("_lock", "_set")

    def __init__(self) -> None:
        self._set = False
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        if not self._set:
            self._set = True
            self._lock.release()

    async def wait(self, seconds: float) -> bool:
        if self._set:
            return True
        return self._lock.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))


class _Stream:
    """A stream whose requests gRPC takes from a queue, with a thread that ends it when an answer is overdue.

    gRPC's iterator of responses knows no time limit but the whole stream's.
    """

    def __init__(self, method: Method, metadata: Metadata) -> None:
        self._requests: SimpleQueue[Any] = SimpleQueue()
        self._call = method(iter(self._requests.get, END), metadata=metadata)
        self._due = float("inf")
        self._late = False
        self._over = threading.Event()
        self._watch: threading.Thread | None = None

    def send(self, request: Any) -> None:
        self._requests.put(request)

    async def receive(self, *, seconds: float) -> Any:
        self._due = time.monotonic() + seconds
        if self._watch is None:
            self._watch = threading.Thread(target=self._end_late, args=(seconds,), daemon=True)
            self._watch.start()
        try:
            return next(self._call, END)
        except grpc.RpcError:
            if self._late:
                raise TimeoutError from None
            raise
        finally:
            self._due = float("inf")

    async def finish(self, *, seconds: float) -> None:
        self._requests.put(END)
        await self.receive(seconds=seconds)

    def cancel(self) -> None:
        self._over.set()
        self._requests.put(END)
        self._call.cancel()

    def _end_late(self, seconds: float) -> None:
        # What is due only moves on, so that one who wakes when it was due is never too late.
        while not self._over.wait(min(seconds, max(0.0, self._due - time.monotonic()))):
            if time.monotonic() >= self._due:
                self._late = True
                self._call.cancel()
                return
