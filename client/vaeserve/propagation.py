"""The caller's trace, passed on where OpenTelemetry is in use."""

import re
import sys

from vaeserve.transport import Metadata

# What gRPC carries; a call with anything else would fail, for a trace.
_NAME, _VALUE = re.compile(r"[0-9a-z_.-]+"), re.compile(r"[ -~]*")


def trace_context() -> Metadata:
    """Return what tells the service which trace a call is part of; nothing where this process has none.

    An instrumented gRPC does it itself, with a span of its own: said twice, it would be believed in neither.
    """
    if "opentelemetry.trace" not in sys.modules or "opentelemetry.instrumentation.grpc" in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    said = ((name.lower(), value) for name, value in carrier.items())
    return tuple((name, value) for name, value in said if _NAME.fullmatch(name) and _VALUE.fullmatch(value))
