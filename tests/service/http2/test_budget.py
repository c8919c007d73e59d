"""What the other end may do in vain: so much at once, and so much more a second."""

import pytest

from tests.service.http2.clock import Clock
from vaeserve_service.http2 import budget
from vaeserve_service.http2.budget import Budget


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time that budgets read."""
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


def spent(budget: Budget) -> int:
    """Spend all that there is, and return how much it was."""
    count = 0
    while budget.spend():
        count += 1
    return count


@pytest.mark.usefixtures("clock")
def test_so_many_may_be_had_at_once() -> None:
    """As many as it says are to be had, and then none."""
    assert spent(Budget(5, per_second=100)) == 5


def test_more_may_be_had_with_time(clock: Clock) -> None:
    """Each second brings its share, parts of one add up, and never more than the most is saved."""
    some = Budget(5, per_second=2)
    spent(some)
    clock.now += 0.4
    assert not some.spend()
    clock.now += 0.2
    assert spent(some) == 1
    clock.now += 3600
    assert spent(some) == 5


@pytest.mark.usefixtures("clock")
def test_what_is_earned_may_be_spent() -> None:
    """Each one earned allows one more, but nothing is saved beyond the most."""
    some = Budget(2, per_second=0)
    some.earn()
    assert spent(some) == 2
    some.earn()
    assert spent(some) == 1
