"""What becomes of a connection with time."""

import random
import time
from typing import Protocol

from vaeserve_service.config import ConnectionsConfig
from vaeserve_service.http2.frames import Code

# Seconds for which a connection without calls that was told to leave may still begin one that was on its way.
LEAVE_S = 2.0

_ALIVE = b"alive?\0\0"
# An age is so much shorter or longer, or all connections that began together would end together.
_JITTER = 0.1


class Aging(Protocol):
    """A connection, as far as time has to do with it, in `time.monotonic`'s seconds."""

    is_greeted: bool
    idle_since: float
    leaving_since: float | None

    @property
    def is_idle(self) -> bool:
        """Whether it has no calls."""
        ...

    def ping(self, content: bytes) -> None:
        """Ask for a sign of life."""
        ...

    def leave(self, reason: str) -> None:
        """Say that there will be no more calls here."""
        ...

    def end(self, code: Code, reason: str) -> None:
        """End it with all its calls."""
        ...


class Lifetime:
    """Sees to it that a connection says who it is, shows that it is there, and ends if it is idle or old.

    Times are `time.monotonic`'s seconds. The reasons are those that grpcio's server gives.
    """

    def __init__(self, connection: Aging, config: ConnectionsConfig) -> None:
        self._connection = connection
        self._config = config
        self._began = self.heard = time.monotonic()
        self._old = self._began + config.age_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - no secret
        self._asked: float | None = None

    def look(self) -> float:
        """Do what is due, and return in how many seconds to look again."""
        now = time.monotonic()
        return max(0.001, min(self._greeting(now), self._aging(now), self._idling(now), self._living(now)))

    def _greeting(self, now: float) -> float:
        """End a connection that doesn't take our settings in time; return the seconds until it would be."""
        if self._connection.is_greeted:
            return self._config.age_s
        left = self._began + self._config.handshake_s - now
        if left <= 0:
            self._connection.end(Code.PROTOCOL_ERROR, "settings_timeout")
        return left

    def _aging(self, now: float) -> float:
        """Have an old connection leave, and end it after its grace; return the seconds until it would be."""
        left = self._old - now
        if left > 0:
            return left
        self._connection.leave("max_age")
        if left + self._config.age_grace_s <= 0:
            self._connection.end(Code.NO_ERROR, "max connection age")
        return left + self._config.age_grace_s

    def _idling(self, now: float) -> float:
        """Have an idle connection leave, and end one that doesn't; return the seconds until it would be."""
        connection, config = self._connection, self._config
        if not connection.is_idle:
            return config.idle_s if connection.leaving_since is None else LEAVE_S
        idle_s = now - connection.idle_since
        if idle_s >= config.idle_s:
            connection.leave("connection idle")
        if connection.leaving_since is None:
            return config.idle_s - idle_s
        left = max(connection.leaving_since, connection.idle_since) + LEAVE_S - now
        if left <= 0:
            connection.end(Code.NO_ERROR, "connection idle")
        return left

    def _living(self, now: float) -> float:
        """Ask a silent connection with calls for a sign of life, and end it without; return the seconds until then."""
        connection, config = self._connection, self._config
        if self._asked is not None and self.heard > self._asked:
            self._asked = None
        if self._asked is not None:
            left = self._asked + config.keepalive_timeout_s - now
            if left <= 0:
                connection.end(Code.NO_ERROR, "keepalive_timeout")
            return left
        left = self.heard + config.keepalive_s - now
        if left > 0 or connection.is_idle:
            return left if left > 0 else config.keepalive_s
        connection.ping(_ALIVE)
        self._asked = now
        return config.keepalive_timeout_s
