"""When a call that failed is made again: where that is safe, after how long, and when not."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

# In all of these there is no answer, and nothing is changed, for our calls only read. CANCELLED is never our own doing
# here: a service that stops says so of what is left after its grace.
RETRIED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED})
PUSHBACK = "grpc-retry-pushback-ms"


@dataclass(frozen=True)
class Retry:
    """Exponential backoff with full jitter, seconds.

    Source: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015, "Full Jitter".
    """

    first_s: float = 0.1
    longest_s: float = 2.0

    def delay(self, error: Any, attempt: int) -> float | None:
        """Return how long to wait before the next attempt, counted from 0; None where there is to be none.

        A service that says when to come back is given that time and the jitter on top, so that callers who were
        refused together don't come back together. Source: gRPC's proposal A6, "Pushback".
        """
        if error.code() not in RETRIED or "larger than max" in (error.details() or ""):
            return None
        pushback = _pushback(error.trailing_metadata() or ())
        if pushback is not None and pushback < 0:
            return None
        ceiling = min(self.longest_s, self.first_s * 2.0 ** min(attempt, 32))
        return (pushback or 0.0) + random.uniform(0, ceiling)  # noqa: S311 - no secret


def _pushback(metadata: Iterable[tuple[str, Any]]) -> float | None:
    """Return the seconds that a service asks for, negative for never again; None where it doesn't ask."""
    values = [value for key, value in metadata if key == PUSHBACK]
    if not values:
        return None
    try:
        return int(values[0]) / 1000
    except ValueError:
        return -1.0
