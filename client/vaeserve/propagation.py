"""The caller's trace, passed on where OpenTelemetry is in use."""

import sys

from vaeserve.transport import Metadata


def trace_context() -> Metadata:
    """Return what tells the service which trace a call is part of; nothing where this process has none.

    An instrumented gRPC does it itself, with a span of its own: said twice, it would be believed in neither.
    """
    if "opentelemetry.trace" not in sys.modules or "opentelemetry.instrumentation.grpc" in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((name.lower(), value) for name, value in carrier.items())
