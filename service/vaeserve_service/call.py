"""The seam between the RPCs and what carries them: a call, and how a method is called."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message


@dataclass(slots=True)
class Call:
    """A call under way: its RPC, and the model version that answers it, empty until its handler knows.

    Only what is served gets here, so that both may label a metric.
    """

    rpc: str
    model: str = ""
    version: str = ""


@dataclass(frozen=True)
class Method:
    """An RPC: what it takes, and its handler, `(request, call) -> response`, or for a stream of them iterators of both.

    A handler raises our errors; a response may be serialized already.
    """

    request: type[Message]
    handle: Callable[[Any, Call], Any]
    streaming: bool = False
