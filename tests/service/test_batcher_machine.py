"""The batcher under whatever comes in whatever order: requests of all sizes, cancels, errors, one runner or more."""

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from numpy.typing import NDArray

from vaeserve.errors import InternalError, OverloadedError
from vaeserve_service.batcher import Batcher
from vaeserve_service.requests import Arrays, Batch, Request
from vaeserve_service.runners import Runners

MAX_ROWS, QUEUE_ROWS = 6, 60

# A key, how many rows, what each counts as, and whether the first of them breaks its call.
Asked = tuple[str, int, int, bool]
REQUESTS: st.SearchStrategy[Asked] = st.tuples(
    st.sampled_from("ab"),
    st.integers(0, 4) | st.integers(5, 25),
    st.sampled_from([1, 1, 1, 2, 5, 9]),
    st.sampled_from([False, False, False, False, False, True]),
)


@dataclass
class Call:
    """A call: its key, whose rows it had, whether it breaks, and how many had ended when it began and when it ended."""

    key: str
    rows: set[tuple[int, int]]
    breaks: bool
    began: int
    ended: int = 0
    may_end: threading.Event = field(default_factory=threading.Event)

    def has(self, number: int) -> bool:
        """Tell whether it had rows of a request."""
        return any(owner == number for owner, _ in self.rows)


class Machine(RuleBasedStateMachine):
    """Requests whose rows tell whose they are, and calls that end when the machine lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.requests: list[Request] = []
        self.keys: list[str] = []
        self.asked: list[NDArray[np.float64]] = []
        self.broken: set[int] = set()  # requests with a row that breaks its call
        self.gone: dict[int, int] = {}  # how many rows of a cancelled request calls had when it was
        self.calls: list[Call] = []
        self.ended = 0
        self.batches: list[Batch] = []
        self.defects: list[Any] = []
        self.loop.set_exception_handler(lambda _, context: self.defects.append(context))

    @initialize(runners=st.integers(1, 3), delay_s=st.sampled_from([0, 0.001]))
    def start(self, runners: int, delay_s: float) -> None:
        """Start some runners."""
        self.runners = Runners(runners).__enter__()
        self.batcher: Batcher[str] = Batcher(
            self.compute,
            runners=self.runners,
            max_rows=MAX_ROWS,
            max_delay_s=delay_s,
            queue_rows=QUEUE_ROWS,
            queue_bytes=10_000,
            on_batch=self.on_batch,
        )

    def compute(self, key: str, inputs: Arrays) -> Arrays:
        """Return each row, once the call may end; raise if one of them breaks it."""
        rows = {(int(request), int(row)) for request, row in inputs["x"]}
        breaks = any(request in self.broken and row == 0 for request, row in rows)
        self.calls.append(call := Call(key, rows, breaks, self.ended))
        assert call.may_end.wait(60)
        call.ended = self.ended
        if breaks:
            raise InternalError("broken")
        return {"y": inputs["x"].copy()}

    def on_batch(self, _: str, batch: Batch) -> None:
        """Count a call that has ended."""
        self.ended += 1
        self.batches.append(batch)

    def settle(self) -> None:
        """Let the loop do what is ready, and the runners begin what they were given."""
        self.loop.run_until_complete(_turns(5))
        while len(self.calls) < self.ended + self.busy:
            time.sleep(0)

    @property
    def busy(self) -> int:
        """How many calls are under way."""
        return self.runners.count - len(self.runners._idle)

    @rule(asked=st.lists(REQUESTS, min_size=1, max_size=6), settles=st.booleans())
    def submit(self, *, asked: list[Asked], settles: bool) -> None:
        """Submit requests, together or with the loop's turns between them."""
        for one in asked:
            self.submit_one(*one)
            if settles:
                self.settle()

    def submit_one(self, key: str, rows: int, cost: int, breaks: bool) -> None:
        """Submit a request; only a queue that it would overfill may refuse it."""
        number, waiting = len(self.requests), self.batcher.waiting_rows
        mine = np.array([(number, row) for row in range(rows)], int).reshape(rows, 2)

        async def submit() -> None:
            self.requests.append(self.batcher.submit(key, {"x": mine}, cost=cost))
            self.keys.append(key)
            self.asked.append(mine)
            self.broken |= {number} if breaks else set()

        try:
            self.loop.run_until_complete(submit())
        except OverloadedError:
            assert waiting
            assert waiting + max(1, rows) * cost > QUEUE_ROWS or self.batcher.waiting_bytes + mine.nbytes > 10_000

    @rule(back=st.integers(0, 5))
    def cancel(self, back: int) -> None:
        """Cancel one of the last requests."""
        number = len(self.requests) - 1 - back
        if number >= 0 and self.loop.run_until_complete(_cancel(self.requests[number])):
            self.gone[number] = self.requests[number]._taken

    @rule(numbers=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def end(self, numbers: list[int]) -> None:
        """Let some of the calls under way end, one after another."""
        for number in numbers:
            self.settle()
            under_way = [call for call in self.calls if not call.may_end.is_set()]
            if under_way:
                ended = self.ended
                under_way[number % len(under_way)].may_end.set()
                self.loop.run_until_complete(_until(lambda ended=ended: self.ended > ended or self.defects))

    @rule()
    def pause(self) -> None:
        """Let time pass, as long as a call may wait for others."""
        self.loop.run_until_complete(asyncio.sleep(0.002))

    def teardown(self) -> None:
        """Let all calls end: each request has its rows, its error or its cancellation, and nothing waits."""
        if not hasattr(self, "runners"):
            self.loop.close()
            return
        turns = 0
        while not self.defects and (self.busy or not all(request.done() for request in self.requests)):
            self.end([0]) if self.busy else self.pause()
            turns += 1
            assert turns < 1000, "a request is never computed"
        self.loop.run_until_complete(_until(lambda: not self.runners._queues))
        self.runners.__exit__(None, None, None)
        self.loop.close()
        assert not self.defects
        assert all(
            sum(piece.weight for piece in batch.pieces) <= MAX_ROWS or is_one_row(batch) for batch in self.batches
        )
        assert (self.batcher.waiting_rows, self.batcher.waiting_bytes) == (0, 0)
        computed = Counter(row for call in self.calls for row in call.rows)
        assert not computed or max(computed.values()) == 1
        for number, request in enumerate(self.requests):
            self.check(number, request)

    def check(self, number: int, request: Request) -> None:
        """Check what came of a request."""
        calls = [call for call in self.calls if call.has(number)]
        assert {call.key for call in calls} <= {self.keys[number]}
        broke = [call for call in calls if call.breaks]
        if request.cancelled():
            assert sum(owner == number for call in calls for owner, _ in call.rows) == self.gone[number]
        elif request.exception() is not None:
            assert isinstance(request.exception(), InternalError)
            assert broke or request.rows == 0
            assert not broke or max(call.began for call in calls) <= min(call.ended for call in broke)
        else:
            assert not broke
            assert request.result()["y"].tolist() == self.asked[number].tolist()


def is_one_row(batch: Batch) -> bool:
    """Tell whether a batch has one row, which may count for more than a batch may have."""
    return len(batch.pieces) == 1 and batch.pieces[0].rows <= 1


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _cancel(request: Request) -> bool:
    return request.cancel()


async def _until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.0002)


@pytest.mark.parametrize("examples", [100, pytest.param(1500, marks=pytest.mark.slow)])
def test_every_request_gets_its_own_and_nothing_is_left(examples: int) -> None:
    """Rows, error or cancellation: each request has its own, no row is computed twice or after its cancellation."""
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # to shrink what never ends takes for ever
        ),
    )
