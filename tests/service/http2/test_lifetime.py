"""What becomes of a connection with time, on a clock that the test moves."""

from typing import Any

import pytest

from tests.service.http2.clock import Clock
from vaeserve_service.config import ConnectionsConfig
from vaeserve_service.http2 import lifetime
from vaeserve_service.http2.frames import Code
from vaeserve_service.http2.lifetime import LEAVE_S, Lifetime

SHORT: dict[str, float] = {
    "handshake_s": 10,
    "idle_s": 300,
    "age_s": 3600,
    "age_grace_s": 600,
    "keepalive_s": 60,
    "keepalive_timeout_s": 20,
}


class Aged:
    """A connection that says what was done to it, and when."""

    def __init__(self, clock: Clock, *, is_greeted: bool = True, is_idle: bool = False) -> None:
        self.is_greeted = is_greeted
        self.is_idle = is_idle
        self.idle_since = clock.now
        self.leaving_since: float | None = None
        self.done: list[tuple[float, str]] = []
        self.code: Code | None = None
        self._clock = clock
        self._began = clock.now

    def ping(self, content: bytes) -> None:
        """Ask for a sign of life."""
        assert len(content) == 8
        self._note("ping")

    def leave(self, reason: str) -> None:
        """Say that there will be no more calls here."""
        if self.leaving_since is None:
            self.leaving_since = self._clock.now
            self._note(f"leave: {reason}")

    def end(self, code: Code, reason: str) -> None:
        """End it."""
        if self.code is None:
            self.code = code
            self._note(f"end: {reason}")

    def _note(self, what: str) -> None:
        self.done.append((round(self._clock.now - self._began, 3), what))


class Life:
    """A connection and what watches it, which looks when it said that it would."""

    def __init__(self, clock: Clock, *, is_greeted: bool = True, is_idle: bool = False, **config: float) -> None:
        self.clock = clock
        self.connection = Aged(clock, is_greeted=is_greeted, is_idle=is_idle)
        self.lifetime = Lifetime(self.connection, ConnectionsConfig(**(SHORT | config)))
        self._due = clock.now

    def live(self, seconds: float) -> list[tuple[float, str]]:
        """Let so many seconds pass, and return all that was done so far."""
        end = self.clock.now + seconds
        while self._due <= end and self.connection.code is None:
            self.clock.now = max(self._due, self.clock.now)
            delay = self.lifetime.look()
            assert delay > 0
            self._due = self.clock.now + delay
        self.clock.now = end
        return self.connection.done

    def hear(self) -> None:
        """Hear from the other end."""
        self.lifetime.heard = self.clock.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that a lifetime reads; ages are what they say, neither shorter nor longer."""
    clock = Clock()
    monkeypatch.setattr(lifetime, "time", clock)
    monkeypatch.setattr(lifetime, "_JITTER", 0)
    return clock


def test_who_does_not_greet_is_not_waited_for(clock: Clock) -> None:
    """A connection whose settings aren't acknowledged in time ends as a protocol's error, though it speaks."""
    life = Life(clock, is_greeted=False, keepalive_s=5)
    life.live(9)
    life.hear()
    assert life.live(2)[-1] == (10, "end: settings_timeout")
    assert life.connection.code == Code.PROTOCOL_ERROR


def test_who_greets_in_time_goes_on(clock: Clock) -> None:
    """Once the settings are acknowledged there is no hurry."""
    life = Life(clock, is_greeted=False, is_idle=True)
    life.live(9)
    life.connection.is_greeted = True
    assert life.live(200) == []


def test_an_idle_connection_leaves_and_ends(clock: Clock) -> None:
    """Without calls for long enough it says that it goes, and ends where a call on its way had the time to come."""
    life = Life(clock, is_idle=True)
    assert life.live(400) == [(300, "leave: connection idle"), (300 + LEAVE_S, "end: connection idle")]
    assert life.connection.code == Code.NO_ERROR


def test_a_connection_with_calls_is_not_idle(clock: Clock) -> None:
    """Its idle time begins when the last of its calls has ended."""
    life = Life(clock, keepalive_s=10_000)
    assert life.live(1000) == []
    life.connection.is_idle, life.connection.idle_since = True, clock.now
    assert life.live(299) == []
    assert life.live(1) == [(1300, "leave: connection idle")]


def test_a_call_that_was_on_its_way_is_waited_for(clock: Clock) -> None:
    """A connection that was told to leave ends some time after the last of the calls that came still."""
    life = Life(clock, is_idle=True, keepalive_s=10_000)
    life.live(300)
    life.connection.is_idle = False
    life.live(500)
    life.connection.is_idle, life.connection.idle_since = True, clock.now
    assert life.lifetime.look() == LEAVE_S
    assert life.live(LEAVE_S - 0.01) == [(300, "leave: connection idle")]
    assert [what for _, what in life.live(301)] == ["leave: connection idle", "end: connection idle"]


def test_an_old_connection_leaves_and_ends_after_its_grace(clock: Clock) -> None:
    """At its age it takes no more calls; those that still run after the grace end with it."""
    life = Life(clock, keepalive_s=10_000)
    assert life.live(5000) == [(3600, "leave: max_age"), (4200, "end: max connection age")]
    assert life.connection.code == Code.NO_ERROR


def test_an_old_connection_without_calls_ends_soon(clock: Clock) -> None:
    """Nobody has to wait for the grace of calls that there aren't."""
    life = Life(clock, is_idle=True, idle_s=10_000)
    assert life.live(5000) == [(3600, "leave: max_age"), (3600 + LEAVE_S, "end: connection idle")]


def test_ages_differ(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that began together end apart, within a tenth of their age."""
    monkeypatch.setattr(lifetime, "_JITTER", 0.1)
    ages = []
    for _ in range(100):
        life = Life(clock, keepalive_s=10_000)
        ages.append(life.live(5000)[0][0])
    assert 3240 <= min(ages) < 3420 < 3780 < max(ages) <= 3960


def test_a_silent_connection_with_calls_is_asked_and_ends(clock: Clock) -> None:
    """Who says nothing is asked for a sign of life, and without one isn't there any more."""
    life = Life(clock)
    assert life.live(500) == [(60, "ping"), (80, "end: keepalive_timeout")]
    assert life.connection.code == Code.NO_ERROR


def test_a_connection_that_answers_goes_on(clock: Clock) -> None:
    """After a sign of life it is asked again when it has been silent as long."""
    life = Life(clock)
    life.live(70)
    life.hear()
    assert life.live(59) == [(60, "ping")]
    assert life.live(1) == [(60, "ping"), (130, "ping")]
    clock.now += 19
    life.hear()
    assert life.live(500)[2:] == [(209, "ping"), (229, "end: keepalive_timeout")]


def test_who_speaks_is_not_asked(clock: Clock) -> None:
    """A connection that is heard often enough need not show that it is there."""
    life = Life(clock)
    for _ in range(20):
        assert life.live(50) == []
        life.hear()


def test_an_idle_connection_is_not_asked(clock: Clock) -> None:
    """Silence without calls is what a client may keep."""
    life = Life(clock, is_idle=True, idle_s=3000)
    assert life.live(2999) == []


def test_who_begins_a_call_after_a_silence_is_asked(clock: Clock) -> None:
    """The silence of a connection counts from what was last heard of it, also before its calls."""
    life = Life(clock, is_idle=True, idle_s=3000)
    life.live(1000)
    life.hear()
    life.connection.is_idle = False
    assert life.live(500) == [(1060, "ping"), (1080, "end: keepalive_timeout")]


@pytest.mark.parametrize("late", [0.0, 0.7, 1000.0])
def test_a_late_look_does_what_was_due(clock: Clock, late: float) -> None:
    """A loop that was busy only does it later."""
    life = Life(clock, keepalive_s=10_000)
    clock.now += 4200 + late
    life.lifetime.look()
    assert [what for _, what in life.connection.done] == ["leave: max_age", "end: max connection age"]


def test_it_is_seldom_looked_at(clock: Clock) -> None:
    """A connection that lasts costs a look a minute, not more."""
    looks: list[Any] = []
    life = Life(clock, is_idle=True, idle_s=3000)
    look = life.lifetime.look
    life.lifetime.look = lambda: looks.append(None) or look()  # type: ignore[method-assign, func-returns-value]
    life.live(2999)
    assert len(looks) <= 50
