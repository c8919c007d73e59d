"""Calls of few rows that are joined: what each caller gets, however the others fare, by threads and by tasks."""

import asyncio
import re
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vaeserve import AsyncClient, Client
from vaeserve.calls import Deadline
from vaeserve.client import _run
from vaeserve.coalescing import FEW_ROWS, MOST_ROWS, Coalescer
from vaeserve.errors import DeadlineError, InvalidInputError, NotFoundError, OverloadedError, UnavailableError
from vaeserve.local import LocalService
from vaeserve.parts import Arrays
from vaeserve.tasks import Tasks
from vaeserve.threads import Threads

LONG = 30.0


@dataclass(frozen=True)
class Doubled:
    """An answer with an entry a row."""

    version: str
    values: NDArray[Any]


def rows(*values: float) -> Arrays:
    """Return rows of one column."""
    return {"": np.array(values, np.float32)[:, None]}


def doubled(inputs: Arrays) -> Doubled:
    """Return the right answer."""
    return Doubled("1", inputs[""][:, 0] * 2)


class Sent:
    """A service of tasks whose calls a test sees and answers."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[float], Deadline, asyncio.Future[Any]]] = []

    async def __call__(self, inputs: Arrays, deadline: Deadline) -> Doubled:
        """Take a call, and wait for what the test says."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.calls.append((inputs[""][:, 0].tolist(), deadline, answer))
        await answer
        return doubled(inputs)

    @property
    def rows(self) -> list[list[float]]:
        """The rows of each call so far."""
        return [values for values, _, _ in self.calls]

    def answer(self, call: int, error: Exception | None = None) -> None:
        """Let a call end."""
        future = self.calls[call][2]
        future.set_exception(error) if error else future.set_result(None)


async def settled() -> None:
    """Let every task go as far as it can without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


class Callers:
    """Tasks that call one coalescer."""

    def __init__(self, *, wait_s: float = LONG) -> None:
        self.sent = Sent()
        transport: Any = Tasks(None)  # type: ignore[arg-type]
        self.coalescer: Coalescer[Doubled] = Coalescer(transport, target="service", wait_s=wait_s)

    async def call(self, *values: float, key: str = "k", seconds: float = LONG) -> "asyncio.Task[Doubled]":
        """Make a call, and return its task once it waits."""
        call = self.coalescer.call(key, rows(*values), self.sent, Deadline.after(seconds))
        task = asyncio.create_task(call)
        await settled()
        return task


async def test_a_caller_alone_is_sent_at_once_and_those_after_it_together() -> None:
    """The first of them waits for nobody; what comes while it is under way goes out as one call when it is back."""
    callers = Callers()
    tasks = [await callers.call(value) for value in (1.0, 2.0, 3.0, 4.0)]
    assert callers.sent.rows == [[1.0]]
    callers.sent.answer(0)
    await settled()
    assert callers.sent.rows == [[1.0], [2.0, 3.0, 4.0]]
    callers.sent.answer(1)
    assert [(await task).values.tolist() for task in tasks] == [[2.0], [4.0], [6.0], [8.0]]
    assert not callers.coalescer._lanes


async def test_nobody_waits_longer_than_the_time_for_joining() -> None:
    """Those who are gathered go out though the call before them isn't back."""
    callers = Callers(wait_s=0.01)
    first, second = await callers.call(1.0), await callers.call(2.0)
    while len(callers.sent.calls) < 2:
        await asyncio.sleep(0.001)
    assert callers.sent.rows == [[1.0], [2.0]]
    callers.sent.answer(1)
    assert (await second).values.tolist() == [4.0]
    assert not first.done()
    callers.sent.answer(0)
    await first


async def test_calls_of_another_key_are_never_joined() -> None:
    """Each key has its own calls."""
    callers = Callers()
    tasks = [await callers.call(value, key=key) for value, key in ((1.0, "a"), (2.0, "b"), (3.0, "a"), (4.0, "b"))]
    assert callers.sent.rows == [[1.0], [2.0]]
    for call in (0, 1):
        callers.sent.answer(call)
    await settled()
    assert callers.sent.rows == [[1.0], [2.0], [3.0], [4.0]]
    for call in (2, 3):
        callers.sent.answer(call)
    assert [(await task).values[0] for task in tasks] == [2.0, 4.0, 6.0, 8.0]


async def test_a_joined_call_has_a_bound() -> None:
    """Rows past the most of one call go out at once, as one of their own."""
    callers = Callers()
    tasks = [await callers.call(0.0)]
    tasks += [await callers.call(*[float(number)] * FEW_ROWS) for number in range(MOST_ROWS // FEW_ROWS + 1)]
    assert [len(values) for values in callers.sent.rows] == [1, MOST_ROWS]
    callers.sent.answer(1)
    callers.sent.answer(0)
    await settled()
    callers.sent.answer(2)
    assert [len((await task).values) for task in tasks] == [1] + [FEW_ROWS] * (len(tasks) - 1)
    large = {"": np.zeros((2, 2**20), np.float32)}
    assert [callers.coalescer.takes(inputs) for inputs in (rows(*range(FEW_ROWS + 1)), rows(), large)] == [False] * 3


async def test_the_guilty_alone_hears_of_its_fault() -> None:
    """A joined call that fails with a caller's error is sent again one by one."""
    callers = Callers()
    tasks = [await callers.call(value) for value in (1.0, 2.0, 3.0)]
    callers.sent.answer(0)
    await settled()
    callers.sent.answer(1, InvalidInputError("one of them"))
    await settled()
    assert callers.sent.rows[2:] == [[2.0], [3.0]]
    callers.sent.answer(2, InvalidInputError("this one"))
    callers.sent.answer(3)
    with pytest.raises(InvalidInputError, match="this one"):
        await tasks[1]
    assert (await tasks[2]).values.tolist() == [6.0]


async def test_a_fault_of_the_service_is_everyones() -> None:
    """Each caller has an error of its own to raise, with the same cause, and nothing is sent again."""
    callers = Callers()
    tasks = [await callers.call(value) for value in (1.0, 2.0, 3.0)]
    callers.sent.answer(0)
    await settled()
    error = OverloadedError("full")
    error.__cause__ = cause = ValueError()
    callers.sent.answer(1, error)
    errors = await asyncio.gather(*tasks[1:], return_exceptions=True)
    assert [(type(each), str(each), each.__cause__) for each in errors] == [(OverloadedError, "full", cause)] * 2  # type: ignore[union-attr]
    assert errors[0] is not errors[1]
    assert len(callers.sent.calls) == 2


async def test_a_caller_with_little_time_leaves_the_others_theirs() -> None:
    """It is late at its own deadline, though the call is carried to the longest of all."""
    callers = Callers()
    tasks = [await callers.call(1.0), await callers.call(2.0, seconds=0.02), await callers.call(3.0, seconds=20)]
    callers.sent.answer(0)
    await settled()
    joined, deadline, _ = callers.sent.calls[1]
    assert joined == [2.0, 3.0]
    assert deadline.seconds == 20
    with pytest.raises(DeadlineError, match="service: no answer within 0.02 s"):
        await tasks[1]
    deadline.why = UnavailableError("gone")
    late = await callers.call(4.0, seconds=0.01)
    with pytest.raises(DeadlineError):
        await late
    callers.sent.answer(1)
    assert (await tasks[2]).values.tolist() == [6.0]
    assert callers.sent.rows == [[1.0], [2.0, 3.0]]  # whoever left before was never sent


@pytest.mark.parametrize("leaves", range(4))
async def test_a_cancelled_caller_harms_no_other(leaves: int) -> None:
    """Whichever of them goes, and whatever it was about to do, the others have their answers."""
    for when in ("waiting", "appointed", "sent"):
        callers = Callers()
        tasks = [await callers.call(float(value)) for value in range(4)]
        if when == "waiting":
            tasks[leaves].cancel()
            await settled()
        if leaves or when != "waiting":
            callers.sent.answer(0)
        if when == "sent":
            await settled()
        tasks[leaves].cancel()
        while not all(task.done() for task in tasks):
            await settled()
            for call in range(len(callers.sent.calls)):
                if not callers.sent.calls[call][2].done():
                    callers.sent.answer(call)
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for value, answer in enumerate(answers):
            if not isinstance(answer, asyncio.CancelledError):
                assert isinstance(answer, Doubled)
                assert answer.values.tolist() == [2.0 * value]
        sent = [value for values in callers.sent.rows for value in values]
        assert len(sent) == len(set(sent))  # nor is anyone's row sent twice
        gone = [value for value, answer in enumerate(answers) if isinstance(answer, asyncio.CancelledError)]
        assert gone in ([leaves], [])  # one that had its answer before it could be cancelled keeps it
        assert not callers.coalescer._lanes


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, FEW_ROWS), min_size=1, max_size=40), st.sampled_from([0.0005, 0.01]), st.integers(0, 7))
def test_threads_each_have_their_own_rows(counts: list[int], wait_s: float, bad: int) -> None:
    """However many rows each thread has, and though one's are refused, all others have the answers to theirs."""
    transport = Threads(None)  # type: ignore[arg-type]
    coalescer: Coalescer[Doubled] = Coalescer(transport, target="service", wait_s=wait_s)
    sizes = []

    async def send(inputs: Arrays, deadline: Deadline) -> Doubled:
        assert deadline.remaining > 0
        sizes.append(len(inputs[""]))
        time.sleep(0.001)
        if (inputs[""] == bad).any():
            raise InvalidInputError("bad")
        return doubled(inputs)

    def call(number: int) -> bool:
        values = [float(number)] * counts[number]
        answer = None
        with suppress(InvalidInputError):
            answer = _run(coalescer.call("k", rows(*values), send, Deadline.after(LONG)))
        return (
            answer is None
            if number == bad
            else answer is not None and answer.values.tolist() == [2 * number] * len(values)
        )

    with ThreadPoolExecutor(len(counts)) as pool:
        assert all(pool.map(call, range(len(counts))))
    assert max(sizes) <= MOST_ROWS
    assert not coalescer._lanes


def test_a_thread_with_little_time_is_late_at_its_own_deadline() -> None:
    """It doesn't wait for the call that has its row, which another carries to its end."""
    coalescer: Coalescer[Doubled] = Coalescer(Threads(None), target="service", wait_s=LONG)  # type: ignore[arg-type]
    sent, let = [], threading.Semaphore(0)

    async def send(inputs: Arrays, _: Deadline) -> Doubled:
        sent.append(inputs[""][:, 0].tolist())
        assert let.acquire(timeout=LONG)
        return doubled(inputs)

    def call(value: float, seconds: float) -> Doubled:
        return _run(coalescer.call("k", rows(value), send, Deadline.after(seconds)))

    def waiting() -> int:
        gathered = coalescer._lanes["k"].gathered
        return len(gathered.callers) if gathered else 0

    with ThreadPoolExecutor(3) as pool:
        futures: list[Future[Doubled]] = [pool.submit(call, 1.0, LONG)]
        until(lambda: sent == [[1.0]])
        futures += [pool.submit(call, 2.0, 1.0)]
        until(lambda: waiting() == 1)
        futures += [pool.submit(call, 3.0, LONG)]
        until(lambda: waiting() == 2)
        let.release()
        until(lambda: len(sent) == 2)
        with pytest.raises(DeadlineError):
            futures[1].result()
        let.release()
        assert [futures[0].result().values[0], futures[2].result().values[0]] == [2.0, 6.0]
    assert sent == [[1.0], [2.0, 3.0]]


def until(true: Callable[[], bool]) -> None:
    """Wait, until pytest's time is up."""
    while not true():
        time.sleep(0.001)


def calls_of(service: LocalService, rpc: str) -> float:
    """Return how many calls of an RPC a service has counted."""
    with urllib.request.urlopen(f"{service.http}/metrics", timeout=20) as response:  # noqa: S310 - loopback
        text = response.read().decode()
    return sum(map(float, re.findall(rf'vaeserve_requests_total{{[^}}]*rpc="{rpc}"[^}}]*}} (\S+)', text)))


def test_callers_of_a_service_share_its_calls(service: LocalService, client: Client, rows_of: Any) -> None:
    """64 threads' rows have the bits that they have alone, from far fewer calls; with the flag off, one each."""
    many = rows_of("table7", 64)
    expected = client.score("table7", many)
    for coalesce_ms in (5.0, 0.0):
        before = calls_of(service, "Score")
        with Client(service.target, coalesce_ms=coalesce_ms) as other, ThreadPoolExecutor(64) as pool:
            answers = list(pool.map(lambda row, other=other: other.score("table7", row[None]), np.tile(many, (4, 1))))
        calls = calls_of(service, "Score") - before
        assert calls <= 128 if coalesce_ms else calls == 256
        for number, answer in enumerate(answers):
            assert answer.score.tobytes() == expected.score[[number % 64]].tobytes()


async def test_tasks_share_every_kind_of_call(service: LocalService, client: Client, rows_of: Any) -> None:
    """Scores with their attributions, posteriors and reconstructions are each caller's own, in fewer calls."""
    many = rows_of("table7", 20)
    scores, encoded = client.score("table7", many, top_features=2), client.encode("table7", many)
    reconstructed = client.reconstruct("table7", many).outputs["numeric"]
    before = [calls_of(service, rpc) for rpc in ("Score", "Encode", "Reconstruct", "Decode")]
    async with AsyncClient(service.target) as other:
        for number, answer in enumerate(
            await asyncio.gather(*(other.score("table7", row[None], top_features=2) for row in many))
        ):
            assert answer.attributions == scores.attributions[number : number + 1]
        posteriors = await asyncio.gather(*(other.encode("table7", row[None]) for row in many))
        assert np.concatenate([one.mean for one in posteriors]).tobytes() == encoded.mean.tobytes()
        for call in (
            asyncio.gather(*(other.reconstruct("table7", row[None]) for row in many)),
            asyncio.gather(*(other.decode("table7", mean[None]) for mean in encoded.mean)),
        ):
            outputs: list[Any] = [one.outputs["numeric"] for one in await call]
            assert np.concatenate(outputs).tobytes() == reconstructed.tobytes()
    after = [calls_of(service, rpc) for rpc in ("Score", "Encode", "Reconstruct", "Decode")]
    assert [now - then for now, then in zip(after, before, strict=True)] == [2] * 4


async def test_a_callers_fault_among_right_calls_is_its_own(service: LocalService, rows_of: Any) -> None:
    """Of twenty at once, the one that names no model, and the one of another width, fail; the others don't."""
    many = rows_of("table7", 20)
    async with AsyncClient(service.target) as client:
        answers = await asyncio.gather(
            *(client.score("table7", row[None]) for row in many),
            client.score("fraud", many[:1]),
            client.score("table7", many[:1, :6]),
            return_exceptions=True,
        )
    assert [type(answer).__name__ for answer in answers] == ["Scores"] * 20 + ["NotFoundError", "InvalidInputError"]
    assert isinstance(answers[20], NotFoundError)
