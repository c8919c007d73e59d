"""What is told of every call, in one place: it is counted, and if settings say so traced and logged."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import structlog

from vaeserve_service.call import CURRENT, Call, Service
from vaeserve_service.config import LogCalls
from vaeserve_service.metrics import Metrics
from vaeserve_service.tracing import Tracing

log = structlog.get_logger()


class Observer:
    """Sees calls begin and end."""

    def __init__(self, metrics: Metrics, *, tracing: Tracing | None = None, log_calls: LogCalls = "none") -> None:
        self._metrics = metrics
        self._tracing = tracing
        self._log_calls = log_calls

    def of(self, service: Service) -> "Observer":
        """Return who sees the calls of a service."""
        return self if service.observed else _Nobody()

    def begin(self, call: Call) -> None:
        """See a call begin, in the task that answers it."""
        self._metrics.started()
        CURRENT.set(call)
        if self._tracing:
            with _spared():
                self._tracing.begin(call)

    def answered(self, part: Call, code: grpc.StatusCode) -> None:
        """See one request of a stream answered, if only with what is wrong with it."""
        self._metrics.answered(part, code.name, rows=part.rows)

    def end(self, call: Call, code: grpc.StatusCode) -> None:
        """See a call end with a code; a stream whose requests were all answered has been counted with them."""
        self._metrics.ended()
        failed = code is not grpc.StatusCode.OK
        if not call.streaming:
            self._metrics.answered(call, code.name, rows=call.rows)
        elif failed:
            self._metrics.answered(call, code.name, rows=0)
        if call.on_ended:
            with _spared():
                call.on_ended(code)
        if self._log_calls == "all" or (failed and self._log_calls == "failed"):
            _log(call, code)


class _Nobody(Observer):
    """Sees nothing."""

    def __init__(self) -> None:
        """Take nothing to count or trace with."""

    def begin(self, call: Call) -> None:
        """Pass over a call."""

    def answered(self, part: Call, code: grpc.StatusCode) -> None:
        """Pass over a part of one."""

    def end(self, call: Call, code: grpc.StatusCode) -> None:
        """Pass over its end."""


@contextmanager
def _spared() -> Iterator[None]:
    """Log what tracing raises, and go on: a call doesn't fail for how it is watched."""
    try:
        yield
    except Exception as error:
        log.error("tracing failed", exc_info=error)


def _log(call: Call, code: grpc.StatusCode) -> None:
    log.info(
        "call",
        rpc=call.rpc,
        model=call.model,
        version=call.version,
        code=code.name,
        rows=call.rows,
        seconds=round(call.seconds, 6),
    )
