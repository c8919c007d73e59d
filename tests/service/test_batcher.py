"""Joining waiting requests: who gets which rows, and what is never computed."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vaeserve.errors import InternalError, OverloadedError
from vaeserve_service.batcher import Arrays, Batcher, Runners


class Doubler:
    """Doubles rows, and remembers the batches; waits at a gate so that a test decides when a call ends."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, key: str, inputs: Arrays) -> Arrays:
        """Compute a batch; the key `broken` fails."""
        assert self.gate.wait(20)
        self.batches.append((key, len(inputs["x"])))
        if key == "broken":
            raise InternalError("broken")
        return {"y": 2 * inputs["x"]}


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Two runners."""
    with ThreadPoolExecutor(2) as threads:
        yield threads


def batcher(compute: Doubler, executor: ThreadPoolExecutor, **options: int) -> Batcher[str]:
    """Return a batcher with one runner, unless told otherwise."""
    limits = {"max_rows": 8, "queue_rows": 100, "queue_bytes": 10_000} | options
    return Batcher(compute, runners=Runners(executor, limits.pop("runners", 1)), **limits)  # type: ignore[arg-type]


def rows(*values: float) -> Arrays:
    """Return rows."""
    return {"x": np.array(values)}


async def settle() -> None:
    """Let everything that is ready on the loop run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_requests_that_come_together_are_one_call(executor: ThreadPoolExecutor) -> None:
    """Requests made in one turn of the loop are computed in one call, and each gets its own rows."""
    compute = Doubler()
    queue = batcher(compute, executor)
    answers = await asyncio.gather(*(queue.submit("k", rows(i, i + 0.5)) for i in range(3)))
    assert compute.batches == [("k", 6)]
    assert [answer["y"].tolist() for answer in answers] == [[0, 1], [2, 3], [4, 5]]


async def test_a_lone_request_does_not_wait(executor: ThreadPoolExecutor) -> None:
    """With an idle runner a request is computed at once, by itself."""
    compute = Doubler()
    assert (await batcher(compute, executor).submit("k", rows(1)))["y"].tolist() == [2]
    assert compute.batches == [("k", 1)]


async def test_what_waited_for_a_runner_is_joined(executor: ThreadPoolExecutor) -> None:
    """All that came while the runner was busy is one call, as far as it fits, oldest first."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, executor, max_rows=4)
    tasks = [asyncio.create_task(queue.submit("k", rows(0)))]
    await settle()
    tasks += [asyncio.create_task(queue.submit("k", rows(i, i))) for i in range(1, 4)]
    await settle()
    assert queue.waiting_rows == 6
    compute.gate.set()
    answers = await asyncio.gather(*tasks)
    assert compute.batches == [("k", 1), ("k", 4), ("k", 2)]
    assert [answer["y"][0] for answer in answers] == [0, 2, 4, 6]
    assert queue.waiting_rows == 0


async def test_keys_are_never_mixed_and_take_turns(executor: ThreadPoolExecutor) -> None:
    """Requests with other options are computed apart, and no key waits behind all of another's."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, executor, max_rows=2)
    tasks = [asyncio.create_task(queue.submit(key, rows(1))) for key in ("a", "a", "a", "a", "a", "b")]
    await settle()
    compute.gate.set()
    await asyncio.gather(*tasks)
    assert compute.batches == [("a", 2), ("b", 1), ("a", 2), ("a", 1)]


async def test_a_cancelled_request_is_dropped_before_compute(executor: ThreadPoolExecutor) -> None:
    """Rows whose caller went away while they waited are never computed; the others get their own."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, executor)
    busy = asyncio.create_task(queue.submit("k", rows(0)))
    await settle()
    waiting = [asyncio.create_task(queue.submit("k", rows(i))) for i in (1, 2, 3)]
    await settle()
    waiting[1].cancel()
    await settle()
    assert queue.waiting_rows == 2  # it makes room at once
    compute.gate.set()
    answers = await asyncio.gather(busy, waiting[0], waiting[2])
    assert compute.batches == [("k", 1), ("k", 2)]
    assert [answer["y"].tolist() for answer in answers] == [[0], [2], [6]]


async def test_one_caller_that_leaves_during_the_call_harms_nobody(executor: ThreadPoolExecutor) -> None:
    """A request that is cancelled inside a running batch leaves the others their rows."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, executor)
    tasks = [asyncio.create_task(queue.submit("k", rows(i))) for i in range(3)]
    await settle()
    tasks[0].cancel()
    compute.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer["y"].tolist() for answer in answers[1:]] == [[2], [4]]  # type: ignore[index]


async def test_an_error_reaches_its_own_batch_alone(executor: ThreadPoolExecutor) -> None:
    """All requests of a batch that failed get the error; the next batch is computed as usual."""
    compute = Doubler()
    queue = batcher(compute, executor)
    answers = await asyncio.gather(
        queue.submit("broken", rows(1)), queue.submit("broken", rows(2)), return_exceptions=True
    )
    assert all(isinstance(answer, InternalError) for answer in answers)
    assert (await queue.submit("k", rows(1)))["y"].tolist() == [2]


async def test_a_full_queue_refuses_at_once(executor: ThreadPoolExecutor) -> None:
    """Rows past the queue's bound are refused with both counts, and the queue takes more once it has room."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, executor, queue_rows=3)
    busy = asyncio.create_task(queue.submit("k", rows(0)))
    await settle()
    waiting = asyncio.create_task(queue.submit("k", rows(1, 2)))
    await settle()
    with pytest.raises(OverloadedError, match="2 rows wait, and 2 more exceed 3"):
        await queue.submit("k", rows(3, 4))
    compute.gate.set()
    await asyncio.gather(busy, waiting)
    assert (await queue.submit("k", rows(5)))["y"].tolist() == [10]


async def test_a_queue_is_bounded_in_bytes_too(executor: ThreadPoolExecutor) -> None:
    """Few rows of many bytes are refused likewise, strings counted with what they hold."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, executor, queue_bytes=1000)
    busy = asyncio.create_task(queue.submit("k", rows(0)))
    await settle()
    waiting = asyncio.create_task(queue.submit("k", rows(1) | {"s": np.array(["a" * 500], object)}))
    await settle()
    assert 500 < queue.waiting_bytes < 700
    with pytest.raises(OverloadedError, match=r"queue: \d+ bytes wait, and \d+ more exceed 1000"):
        await queue.submit("k", rows(2) | {"s": np.array(["b" * 500], object)})
    compute.gate.set()
    await asyncio.gather(busy, waiting)
    assert queue.waiting_bytes == 0


async def test_a_request_larger_than_a_batch_is_one_by_itself(executor: ThreadPoolExecutor) -> None:
    """A request of more rows than a batch holds is computed alone; the runtime cuts it into chunks."""
    compute = Doubler()
    queue = batcher(compute, executor, max_rows=2)
    answers = await asyncio.gather(queue.submit("k", rows(*range(5))), queue.submit("k", rows(9)))
    assert compute.batches == [("k", 5), ("k", 1)]
    assert answers[1]["y"].tolist() == [18]


async def test_runners_work_side_by_side(executor: ThreadPoolExecutor) -> None:
    """With two runners a second batch doesn't wait for the first."""
    both = threading.Barrier(2, timeout=20)

    def meet(key: str, inputs: Arrays) -> Arrays:
        del key
        both.wait()
        return {"y": inputs["x"]}

    queue: Batcher[str] = Batcher(meet, runners=Runners(executor, 2), max_rows=1, queue_rows=10, queue_bytes=10_000)
    answers = await asyncio.gather(queue.submit("k", rows(1)), queue.submit("k", rows(2)))
    assert [answer["y"].tolist() for answer in answers] == [[1], [2]]


async def test_under_load_few_rows_join_rather_than_take_another_runner(executor: ThreadPoolExecutor) -> None:
    """While a short call is under way rows of its kind wait for its end, unless they fill a batch."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, executor, runners=2, max_rows=4)
    tasks = [asyncio.create_task(queue.submit("k", rows(0)))]
    await settle()
    tasks += [asyncio.create_task(queue.submit("k", rows(i))) for i in (1, 2)]
    await settle()
    assert queue.waiting_rows == 2
    tasks += [asyncio.create_task(queue.submit("k", rows(i))) for i in (3, 4)]
    await settle()
    assert queue.waiting_rows == 0
    compute.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(compute.batches) == [("k", 1), ("k", 4)]


async def test_a_free_runner_serves_another_key_at_once(executor: ThreadPoolExecutor) -> None:
    """Rows that could not join the running call don't wait for it while a runner is free."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, executor, runners=2)
    tasks = [asyncio.create_task(queue.submit(key, rows(1))) for key in ("slow", "fast")]
    await settle()
    assert queue.waiting_rows == 0
    compute.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(compute.batches) == [("fast", 1), ("slow", 1)]


async def test_models_share_the_runners(executor: ThreadPoolExecutor) -> None:
    """A model's request waits, and can be cancelled, while another model's call has the only runner."""
    compute, other = Doubler(), Doubler()
    compute.gate.clear()
    runners = Runners(executor, 1)
    first: Batcher[str] = Batcher(compute, runners=runners, max_rows=8, queue_rows=10, queue_bytes=10_000)
    second: Batcher[str] = Batcher(other, runners=runners, max_rows=8, queue_rows=10, queue_bytes=10_000)
    busy = asyncio.create_task(first.submit("k", rows(1)))
    await settle()
    waiting = asyncio.create_task(second.submit("k", rows(1)))
    await settle()
    assert second.waiting_rows == 1
    waiting.cancel()
    compute.gate.set()
    await busy
    await settle()
    assert other.batches == []
    assert (await second.submit("k", rows(2)))["y"].tolist() == [4]


async def test_rows_count_for_what_they_cost(executor: ThreadPoolExecutor) -> None:
    """Rows of more samples fill batch and queue sooner."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, executor, max_rows=8, queue_rows=10)
    busy = asyncio.create_task(queue.submit("k", rows(0)))
    await settle()
    dear = [asyncio.create_task(queue.submit("dear", rows(i), cost=5)) for i in (1, 2)]
    await settle()
    assert queue.waiting_rows == 10
    with pytest.raises(OverloadedError):
        await queue.submit("k", rows(3))
    compute.gate.set()
    await asyncio.gather(busy, *dear)
    assert compute.batches == [("k", 1), ("dear", 1), ("dear", 1)]


async def test_no_key_is_remembered_once_it_is_answered(executor: ThreadPoolExecutor) -> None:
    """Many seeds leave nothing behind."""
    queue = batcher(Doubler(), executor, runners=2)
    await asyncio.gather(*(queue.submit(f"seed {i}", rows(i)) for i in range(90)))
    await settle()
    assert len(queue._queues) == 0
    assert len(queue._runners._queues) <= 2
