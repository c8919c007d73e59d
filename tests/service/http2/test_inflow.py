"""Messages on their way in: how much of unfinished ones is held, and who may send on."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vaeserve_service.http2.inflow import Inflow

WINDOW, MOST = 10, 50


@dataclass(eq=False)
class Sender:
    """A stream that may send what its window lets, and counts what it was let on."""

    window: int = WINDOW
    size: int = 0
    given: list[int] = field(default_factory=list)

    def give_back(self, size: int) -> None:
        """Let it send so many bytes more."""
        assert size > 0
        self.given.append(size)
        self.window += size

    def send(self, inflow: Inflow, size: int) -> None:
        """Send more of a message."""
        assert size <= self.window
        self.window -= size
        self.size += size
        inflow.hold(self, size)


class Line:
    """Streams that send messages of at most MOST bytes, oldest first."""

    def __init__(self) -> None:
        self.inflow = Inflow(MOST)
        self.senders: list[Sender] = [Sender() for _ in range(6)]
        self.begun: list[Sender] = []

    def send(self, number: int, size: int) -> None:
        """Send as much of a message as may be sent."""
        sender = self.senders[number]
        size = min(size, sender.window, MOST - sender.size)
        if size:
            if sender not in self.begun:
                self.begun.append(sender)
            sender.send(self.inflow, size)

    def release(self, number: int) -> None:
        """Have a stream's message end, or one that holds nothing."""
        sender = self.senders[number]
        if sender in self.begun:
            self.begun.remove(sender)
        self.inflow.release(sender)
        self.senders[number] = Sender()

    def check(self) -> None:
        """See that what is held is bounded, and that nobody waits without a reason."""
        held = sum(sender.size for sender in self.begun)
        assert all(sender.window >= 0 for sender in self.begun)
        if self.begun:
            oldest = self.begun[0]
            assert oldest.window == WINDOW
            assert held - oldest.size <= MOST + (len(self.begun) - 1) * WINDOW
        if held <= MOST:
            assert all(sender.window == WINDOW for sender in self.begun)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.booleans() | st.just(True), st.integers(0, 5), st.integers(1, WINDOW)), max_size=80))
def test_whatever_is_sent_little_is_held_and_the_oldest_goes_on(steps: list[tuple[bool, int, int]]) -> None:
    """The oldest message is always let on, all are while little is held, and others add no more than their windows."""
    line = Line()
    for sends, number, size in steps:
        if sends:
            line.send(number, size)
        else:
            line.release(number)
        line.check()


def test_past_the_bound_only_the_oldest_is_let_on() -> None:
    """While the streams together hold too much one message becomes whole, and the others wait."""
    inflow, first, second = Inflow(15), Sender(), Sender()
    first.send(inflow, 10)
    second.send(inflow, 5)
    second.send(inflow, 1)
    first.send(inflow, 10)
    assert first.given == [10, 10]
    assert second.given == [5]


def test_what_is_released_lets_others_on() -> None:
    """When the oldest message is whole the next is the oldest, and gets back all that it waits for, at once."""
    inflow, first, second, third = Inflow(9), Sender(), Sender(), Sender()
    first.send(inflow, 10)
    for _ in range(2):
        second.send(inflow, 5)
        third.send(inflow, 5)
    assert (second.given, third.given) == ([], [])
    inflow.release(first)
    assert (second.given, third.given) == ([10], [])
    inflow.release(second)
    assert third.given == [10]
    inflow.release(third)
    third.send(inflow, 9)
    assert third.given == [10, 9]


def test_the_end_of_another_lets_on_those_that_fit() -> None:
    """Where a message that isn't the oldest ends, and what is left is within the bound, all may send on."""
    inflow, first, second, third = Inflow(10), Sender(), Sender(), Sender()
    first.send(inflow, 1)
    second.send(inflow, 10)
    third.send(inflow, 2)
    inflow.release(second)
    assert (second.given, third.given) == ([], [2])


def test_who_holds_nothing_is_released_without_effect() -> None:
    """A stream whose message came whole, or that was released already, changes nothing."""
    inflow, first, second = Inflow(5), Sender(), Sender()
    first.send(inflow, 5)
    second.send(inflow, 5)
    inflow.release(Sender())
    assert second.given == []
    inflow.release(first)
    inflow.release(first)
    assert (first.given, second.given) == ([5], [5])
