"""Messages on their way in that are larger than a window: who is let on, and how much of them comes together."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from vaeserve_service.http2.inflow import Inflow

MOST, LARGEST_ASK, STREAMS = 50, 20, 6


@dataclass(eq=False)
class Sender:
    """A stream, and what it was let on."""

    order: list["Sender"] = field(default_factory=list)
    let: list[int] = field(default_factory=list)

    def let_on(self, size: int) -> None:
        """Let it send so many bytes more."""
        assert size > 0
        self.let.append(size)
        self.order.append(self)


class Line:
    """Streams that ask to be let on, the oldest first, and what each waits for."""

    def __init__(self) -> None:
        self.inflow = Inflow(MOST)
        self.order: list[Sender] = []
        self.senders = [Sender(self.order) for _ in range(STREAMS)]
        self.asking: dict[Sender, int] = {}  # what was asked for and not let on, in the order of the first asks

    def ask(self, number: int, size: int) -> None:
        """Let a stream ask for so much, or for as much more than it did."""
        sender = self.senders[number]
        self.asking[sender] = self.asking.get(sender, 0) + size
        self._take(sender, self.asking[sender])

    def settle(self, number: int) -> None:
        """Settle a stream, which goes to the end of the line with what comes next."""
        sender = self.senders[number]
        self.senders[number] = Sender(self.order)
        waiting = [each for each in self.asking if each is not sender and self.asking[each]]
        self.asking.pop(sender, None)
        self.order.clear()
        self.inflow.settle(sender)
        assert self.order == waiting[: len(self.order)]
        self._count()

    def check(self) -> None:
        """See that what was let on is bounded, and that nobody waits without a reason."""
        let = [sum(sender.let) for sender in self.asking]
        assert sum(let[1:]) < MOST + LARGEST_ASK
        asked = list(self.asking.values())
        assert not asked[:1] or asked[0] == 0
        assert sum(let) >= MOST or not any(asked)

    def _take(self, sender: Sender, size: int) -> None:
        self.order.clear()
        self.inflow.ask(sender, size)
        assert self.order in ([], [sender])
        self._count()

    def _count(self) -> None:
        for sender in self.order:
            assert sender.let[-1] == self.asking[sender]
            self.asking[sender] = 0


STEPS = st.tuples(
    st.sampled_from(["ask", "ask", "ask", "settle"]), st.integers(0, STREAMS - 1), st.integers(1, LARGEST_ASK)
)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=80))
def test_whoever_asks_little_comes_at_once_and_the_oldest_is_let_on(steps: list[tuple[str, int, int]]) -> None:
    """The oldest is always let on, past the bound no other, those that wait in their order, and in the end nobody."""
    line = Line()
    for what, number, size in steps:
        if what == "settle":
            line.settle(number)
        elif line.asking.get(line.senders[number], 0) + size <= LARGEST_ASK:
            line.ask(number, size)
        line.check()
    for number in range(STREAMS):
        line.settle(number)
        line.check()
    assert not line.inflow._let
    assert not line.inflow._asked
    assert line.inflow._size == 0


def test_past_the_bound_only_the_oldest_is_let_on() -> None:
    """While the streams were let on too much together one goes on, and the others wait."""
    inflow, first, second = Inflow(15), Sender(), Sender()
    for size in (10, 5):
        inflow.ask(first, size)
        inflow.ask(second, size)
    inflow.ask(first, 10)
    assert first.let == [10, 5, 10]
    assert second.let == [10]


def test_what_is_settled_lets_others_on() -> None:
    """When the oldest is settled the next is the oldest, and is let on what it last asked for, at once."""
    inflow, first, second, third = Inflow(9), Sender(), Sender(), Sender()
    inflow.ask(first, 10)
    for size in (5, 10):
        inflow.ask(second, size)
        inflow.ask(third, size + 1)
    assert (second.let, third.let) == ([], [])
    inflow.settle(first)
    assert (second.let, third.let) == ([10], [])
    inflow.settle(second)
    assert third.let == [11]
    inflow.settle(third)
    inflow.ask(third, 9)
    assert third.let == [11, 9]


def test_the_end_of_another_lets_on_those_that_fit() -> None:
    """Where one that isn't the oldest is settled, and what is left is within the bound, those that wait go on."""
    inflow, first, second, third = Inflow(10), Sender(), Sender(), Sender()
    inflow.ask(first, 1)
    inflow.ask(second, 10)
    inflow.ask(third, 2)
    assert third.let == []
    inflow.settle(second)
    assert third.let == [2]


def test_who_waits_and_is_settled_is_let_on_no_more() -> None:
    """A stream that ended while it waited leaves its place to others."""
    inflow, first, second, third = Inflow(5), Sender(), Sender(), Sender()
    for sender in (first, second, third):
        inflow.ask(sender, 5)
    inflow.settle(second)
    inflow.settle(first)
    assert (first.let, second.let, third.let) == ([5], [], [5])


def test_who_never_asked_is_settled_without_effect() -> None:
    """A stream whose messages were small, or that was settled already, changes nothing."""
    inflow, first, second = Inflow(5), Sender(), Sender()
    inflow.ask(first, 5)
    inflow.ask(second, 5)
    inflow.settle(Sender())
    assert second.let == []
    inflow.settle(first)
    inflow.settle(first)
    assert (first.let, second.let) == ([5], [5])
