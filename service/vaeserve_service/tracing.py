"""OpenTelemetry's spans of a call: its own, and within it the queue, the batch and what of that was computing.

OpenTelemetry is imported only if tracing is asked for. Its own variables (`OTEL_*`) say where spans go, and which do.
"""

import os
import time
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Self

import grpc

from vaeserve import __version__
from vaeserve.errors import ConfigError, first_line
from vaeserve_service.call import Call
from vaeserve_service.config import TracingConfig

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# Seconds that a service which stops waits for its last spans to be taken.
LINGER_S = 5.0

# What is the service's fault. Source: OpenTelemetry's semantic conventions for gRPC, "gRPC status".
_FAULTS = frozenset({
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
})  # fmt: skip


class Tracing:
    """Makes spans; whoever opens it closes it, so that the last are sent."""

    def __init__(self, provider: "TracerProvider", *, linger_s: float = LINGER_S) -> None:
        from opentelemetry import propagate, trace

        self._provider = provider
        self._linger_s = linger_s
        self._tracer = provider.get_tracer("vaeserve", __version__)
        self._extract = propagate.extract
        self._trace = trace
        self.error_status = trace.Status(trace.StatusCode.ERROR)

    @classmethod
    def open(cls, config: TracingConfig) -> Self | None:
        """Return what sends spans by OTLP, or None where no tracing is asked for.

        Raises ConfigError where OpenTelemetry isn't installed, or can't take its variables.
        """
        if not config.enabled:
            return None
        _refuse_other("OTEL_TRACES_EXPORTER", "otlp")
        _refuse_other("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        _refuse_other("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
        try:
            return cls(_provider())
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"tracing.enabled: {error.name} isn't installed; expected pip install 'vaeserve[otel]'"
            ) from None
        except Exception as error:  # of a class that depends on the variable, and some as it is imported
            given = ", ".join(sorted(name for name in os.environ if name.startswith("OTEL_")))
            raise ConfigError(f"tracing.enabled: OpenTelemetry can't take {given}: {first_line(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Send what there is still to send, as far as somebody takes it soon."""
        sending = Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        sending.start()
        sending.join(self._linger_s)

    def begin(self, call: Call) -> None:
        """Begin the span of a call, as part of its caller's trace if it names one."""
        carrier = {key: value for key, value in call.metadata() if isinstance(value, str)}
        method = f"{call.service}/{call.rpc}"
        span = self._tracer.start_span(
            method,
            self._extract(carrier),
            kind=self._trace.SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": method},
        )
        if span.is_recording():
            context = span.get_span_context()
            call.trace = format(context.trace_id, "032x"), format(context.span_id, "016x")
            traced = _Traced(self, call, span)
            call.on_computed, call.on_ended = traced.computed, traced.ended

    def within(self, parent: Any, name: str, *, start: float, end: float, offset: int, rows: int) -> Any:
        """Make a span of some rows within another; return it.

        It goes from `start` to `end`, seconds of a clock that has `offset` nanoseconds to add to the epoch's.
        """
        span = self._tracer.start_span(
            name,
            self._trace.set_span_in_context(parent),
            attributes={"vaeserve.rows": rows},
            start_time=offset + round(start * 1e9),
        )
        span.end(offset + round(end * 1e9))
        return span


class _Traced:
    """A call's span, and what becomes of it."""

    def __init__(self, tracing: Tracing, call: Call, span: Any) -> None:
        self._tracing = tracing
        self._call = call
        self._span = span
        # Between the clock that times a call and that of spans.
        self._offset = time.time_ns() - time.perf_counter_ns()

    def computed(self, request: Any) -> None:
        """Make the spans of a request for rows that has just been answered, or of its wait if its caller went away."""
        now = time.perf_counter()
        within = partial(self._tracing.within, offset=self._offset, rows=request.rows)
        within(self._span, "queue", start=request.arrived, end=request.started or now)
        if request.started:
            batch = within(self._span, "batch", start=request.started, end=now)
            within(batch, "run", start=request.started, end=request.ended)

    def ended(self, code: grpc.StatusCode) -> None:
        """End the span."""
        call = self._call
        self._span.set_attributes({
            "rpc.response.status_code": code.name,
            "vaeserve.model": call.model,
            "vaeserve.version": call.version,
            "vaeserve.rows": call.rows,
            "vaeserve.request_id": call.request_id,
        })  # fmt: skip
        if code in _FAULTS:
            self._span.set_attribute("error.type", code.name)
            self._span.set_status(self._tracing.error_status)
        self._span.end()


def _provider() -> "TracerProvider":
    """Return what sends spans as OpenTelemetry's variables say."""
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    service = Resource.create({"service.version": __version__})
    if str(service.attributes["service.name"]).startswith("unknown_service"):
        service = service.merge(Resource({"service.name": "vaeserve"}))
    provider = TracerProvider(resource=service, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def _refuse_other(variable: str, known: str) -> None:
    """Raise ConfigError for a variable of OpenTelemetry's that asks for another thing than the one we have."""
    value = os.environ.get(variable, known)
    if value != known:
        raise ConfigError(f"{variable}: {value!r}; expected {known}")
