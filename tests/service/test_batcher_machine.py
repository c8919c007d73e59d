"""The batcher under whatever comes in whatever order: requests of all sizes, cancels, errors, one runner or more."""

import asyncio
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from vaeserve.errors import InternalError, OverloadedError
from vaeserve_service.batcher import Batcher
from vaeserve_service.requests import Arrays, Batch, Request
from vaeserve_service.runners import Runners

MAX_ROWS, QUEUE_ROWS = 6, 40


class Machine(RuleBasedStateMachine):
    """Requests whose rows tell whose they are, and calls that end when the machine lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.requests: list[Request] = []
        self.keys: list[str] = []
        self.broken: set[int] = set()  # requests with a row that breaks its call
        self.gone: dict[int, int] = {}  # how many rows of a cancelled request calls had when it was
        self.calls: list[tuple[str, set[tuple[int, int]], bool]] = []
        self.begun: list[str] = []
        self.ended = 0
        self.allowed = threading.Semaphore(0)

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
        self.begun.append(key)
        assert self.allowed.acquire(timeout=60)
        rows = {(int(request), int(row)) for request, row in inputs["x"]}
        breaks = any(request in self.broken and row == 0 for request, row in rows)
        self.calls.append((key, rows, breaks))
        if breaks:
            raise InternalError("broken")
        return {"y": inputs["x"].copy()}

    def on_batch(self, batch: Batch) -> None:
        """See that a batch has no more rows than it may, or one that counts for more."""
        self.ended += 1
        one = len(batch.pieces) == 1 and batch.pieces[0].rows <= 1
        assert one or sum(piece.weight for piece in batch.pieces) <= MAX_ROWS

    def settle(self) -> None:
        """Let the loop do what is ready, and the runners begin what they were given."""
        self.loop.run_until_complete(_turns(5))
        while len(self.begun) < self.ended + self.busy:
            time.sleep(0)

    @property
    def busy(self) -> int:
        """How many calls are under way."""
        return self.runners.count - self.runners._idle

    @rule(
        key=st.sampled_from("ab"),
        rows=st.integers(0, 5) | st.integers(6, 30),
        cost=st.sampled_from([1, 1, 1, 2, 5, 9]),
        breaks=st.sampled_from([False, False, False, True]),
        settles=st.booleans(),
    )
    def submit(self, *, key: str, rows: int, cost: int, breaks: bool, settles: bool) -> None:
        """Submit a request; only a queue that it would overfill may refuse it."""
        number, waiting = len(self.requests), self.batcher.waiting_rows
        mine = np.array([(number, row) for row in range(rows)], int).reshape(rows, 2)

        async def submit() -> None:
            self.requests.append(self.batcher.submit(key, {"x": mine}, cost=cost))
            self.keys.append(key)
            self.broken |= {number} if breaks else set()

        try:
            self.loop.run_until_complete(submit())
        except OverloadedError:
            assert waiting
            assert waiting + max(1, rows) * cost > QUEUE_ROWS or self.batcher.waiting_bytes + mine.nbytes > 10_000
        if settles:
            self.settle()

    @precondition(lambda self: self.requests)
    @rule(draw=st.data())
    def cancel(self, draw: Any) -> None:
        """Cancel a request."""
        number = draw.draw(st.integers(max(0, len(self.requests) - 5), len(self.requests) - 1))
        request = self.requests[number]
        if self.loop.run_until_complete(_cancel(request)):
            self.gone[number] = request._taken

    @precondition(lambda self: self.busy)
    @rule(calls=st.integers(1, 4))
    def end(self, calls: int) -> None:
        """Let some calls end."""
        for _ in range(calls):
            self.settle()
            if self.busy:
                self.wait_for_one_more()

    def wait_for_one_more(self) -> None:
        """Let a call end."""
        ended = self.ended
        self.allowed.release()
        self.loop.run_until_complete(_until(lambda: self.ended > ended))

    @rule()
    def pause(self) -> None:
        """Let time pass, as long as a call may wait for others."""
        self.loop.run_until_complete(asyncio.sleep(0.002))

    def teardown(self) -> None:
        """Let all calls end: each request has its rows, its error or its cancellation, and nothing waits."""
        if not hasattr(self, "runners"):
            self.loop.close()
            return
        self.allowed.release(1_000_000)
        self.loop.run_until_complete(_until(lambda: all(request.done() for request in self.requests)))
        self.loop.run_until_complete(_until(lambda: not self.busy and not self.runners._queues))
        self.runners.__exit__(None, None, None)
        self.loop.close()
        assert (self.batcher.waiting_rows, self.batcher.waiting_bytes) == (0, 0)
        computed = Counter(row for _, rows, _ in self.calls for row in rows)
        assert not computed or max(computed.values()) == 1
        for number, request in enumerate(self.requests):
            self.check(number, request)

    def check(self, number: int, request: Request) -> None:
        """Check what came of a request."""
        mine = [call for call in self.calls if any(owner == number for owner, _ in call[1])]
        assert {key for key, _, _ in mine} <= {self.keys[number]}
        calls = [(rows, broke) for _, rows, broke in mine]
        if request.cancelled():
            assert sum(owner == number for rows, _ in calls for owner, _ in rows) == self.gone[number]
        elif request.exception() is not None:
            assert isinstance(request.exception(), InternalError)
            assert any(broke for _, broke in calls) or request.rows == 0
        else:
            assert not any(broke for _, broke in calls)
            assert request.result()["y"].tolist() == request.inputs["x"].tolist()


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _cancel(request: Request) -> bool:
    return request.cancel()


async def _until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.0002)


@pytest.mark.parametrize("examples", [25, pytest.param(3000, marks=pytest.mark.slow)])
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
