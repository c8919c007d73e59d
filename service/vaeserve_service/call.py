"""The seam between the RPCs and what carries them: a call, and how a method is called."""

import re
import time
import uuid
from asyncio import Future
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from grpc import StatusCode

Metadata = Iterable[tuple[str, str | bytes]]

REQUEST_ID = "x-request-id"

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
# Version 00. Source: W3C Trace Context, section 3.2.
_TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}")


@dataclass(slots=True)
class Call:
    """A call under way: its RPC, and the model version that answers it, empty until its handler knows.

    Only what is served gets into `rpc`, `model` and `version`, so that they may label a metric. Who asks is read from
    its `metadata` only where it is needed. The requests of a stream are calls of their own, its parts.

    on_answered: is told of each part of a stream that has been answered, and with which code.
    on_computed: is told of each request for rows, a future, once it is done.
    on_ended: is told the code that it ended with.
    """

    service: str
    rpc: str
    metadata: Callable[[], Metadata] = tuple
    model: str = ""
    version: str = ""
    rows: int = 0
    started: float = field(default_factory=time.perf_counter)
    streaming: bool = False
    stream: "Call | None" = None
    on_answered: Callable[["Call", StatusCode], None] = lambda *_: None
    on_computed: Callable[[Future[Any]], None] | None = None
    on_ended: Callable[[StatusCode], None] | None = None
    _request_id: str = ""
    _trace: tuple[str, str] | None = None

    @property
    def seconds(self) -> float:
        """How long it has been under way."""
        return time.perf_counter() - self.started

    @property
    def request_id(self) -> str:
        """What its caller named it, or a name of our own."""
        if not self._request_id:
            given = self.given(REQUEST_ID)
            self._request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        return self._request_id

    @property
    def trace(self) -> tuple[str, str]:
        """The trace that it is part of, and its span there, or if it is none of ours its caller's; empty if unknown."""
        if self._trace is None:
            found = _TRACEPARENT.fullmatch(self.given("traceparent"))
            self._trace = (found[1], found[2]) if found else ("", "")
        return self._trace

    @trace.setter
    def trace(self, trace: tuple[str, str]) -> None:
        self._trace = trace

    def given(self, key: str) -> str:
        """Return a value of its metadata, or nothing where there isn't just one."""
        values = [value for name, value in self.metadata() if name == key]
        return values[0] if len(values) == 1 and isinstance(values[0], str) else ""

    def part(self) -> "Call":
        """Return the call as which one request of this stream is answered."""
        return Call(self.service, self.rpc, stream=self, on_computed=self.on_computed)

    def answer(self, rows: int) -> None:
        """Have so many rows answered."""
        self.rows = rows
        if self.stream is not None:
            self.stream.rows += rows
            self.stream.on_answered(self, StatusCode.OK)

    def refuse(self, code: StatusCode) -> None:
        """Have this part of a stream answered with what is wrong with it; the stream goes on."""
        if self.stream is not None:
            self.stream.on_answered(self, code)


# The call that code runs for, in the task that answers it and those that it starts.
CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)


@dataclass(frozen=True)
class Method:
    """An RPC: what it takes, and its handler, `(request, call) -> response`, or for a stream of them iterators of both.

    A handler raises our errors; a response may be serialized already.
    """

    request: type[Message]
    handle: Callable[[Any, Call], Any]
    streaming: bool = False


@dataclass(frozen=True)
class Service:
    """RPCs by their names on the wire; the calls of probes and tools are not observed."""

    methods: Mapping[str, Method]
    observed: bool = True


Services = Mapping[str, Service]
