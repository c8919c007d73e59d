"""Joining waiting requests: who gets which rows, and what is never computed."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from vaeserve.errors import InternalError, OverloadedError
from vaeserve_service import queues
from vaeserve_service import runners as module
from vaeserve_service.batcher import Batcher
from vaeserve_service.requests import Arrays, Batch
from vaeserve_service.runners import Runners


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
def runners() -> Iterator[Runners]:
    """One runner."""
    with Runners(1) as one:
        yield one


@pytest.fixture
def pair() -> Iterator[Runners]:
    """Two runners."""
    with Runners(2) as two:
        yield two


def batcher(compute: Callable[[str, Arrays], Arrays], runners: Runners, **options: Any) -> Batcher[str]:
    """Return a batcher."""
    return Batcher(
        compute,
        runners=runners,
        **({"max_rows": 8, "max_delay_s": 0, "queue_rows": 100, "queue_bytes": 10_000} | options),
    )


def rows(*values: float) -> Arrays:
    """Return rows."""
    return {"x": np.array(values)}


async def settle() -> None:
    """Let everything that is ready on the loop run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_requests_that_come_together_are_one_call(runners: Runners) -> None:
    """Requests made in one turn of the loop are computed in one call, and each gets its own rows."""
    compute = Doubler()
    queue = batcher(compute, runners)
    answers = await asyncio.gather(*(queue.submit("k", rows(i, i + 0.5)) for i in range(3)))
    assert compute.batches == [("k", 6)]
    assert [answer["y"].tolist() for answer in answers] == [[0, 1], [2, 3], [4, 5]]


async def test_a_lone_request_does_not_wait(runners: Runners) -> None:
    """With an idle runner a request is computed at once, by itself."""
    compute = Doubler()
    assert (await batcher(compute, runners).submit("k", rows(1)))["y"].tolist() == [2]
    assert compute.batches == [("k", 1)]


async def test_what_waited_for_a_runner_is_joined(runners: Runners) -> None:
    """All that came while the runner was busy is one call, as far as it fits, oldest first."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, runners, max_rows=4)
    tasks = [queue.submit("k", rows(0))]
    await settle()
    tasks += [queue.submit("k", rows(i, i)) for i in range(1, 4)]
    await settle()
    assert queue.waiting_rows == 6
    compute.gate.set()
    answers = await asyncio.gather(*tasks)
    assert compute.batches == [("k", 1), ("k", 4), ("k", 2)]
    assert [answer["y"][0] for answer in answers] == [0, 2, 4, 6]
    assert queue.waiting_rows == 0


async def test_keys_are_never_mixed_and_take_turns(runners: Runners) -> None:
    """Requests with other options are computed apart, and no key waits behind all of another's."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, runners, max_rows=2)
    tasks = [queue.submit(key, rows(1)) for key in ("a", "a", "a", "a", "a", "b")]
    await settle()
    compute.gate.set()
    await asyncio.gather(*tasks)
    assert compute.batches == [("a", 2), ("b", 1), ("a", 2), ("a", 1)]


async def test_a_cancelled_request_is_dropped_before_compute(runners: Runners) -> None:
    """Rows whose caller went away while they waited are never computed; the others get their own."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, runners)
    busy = queue.submit("k", rows(0))
    await settle()
    waiting = [queue.submit("k", rows(i)) for i in (1, 2, 3)]
    await settle()
    waiting[1].cancel()
    await settle()
    assert queue.waiting_rows == 2  # it makes room at once
    compute.gate.set()
    answers = await asyncio.gather(busy, waiting[0], waiting[2])
    assert compute.batches == [("k", 1), ("k", 2)]
    assert [answer["y"].tolist() for answer in answers] == [[0], [2], [6]]


async def test_one_caller_that_leaves_during_the_call_harms_nobody(runners: Runners) -> None:
    """A request that is cancelled inside a running batch leaves the others their rows."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, runners)
    tasks = [queue.submit("k", rows(i)) for i in range(3)]
    await settle()
    tasks[0].cancel()
    compute.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert [answer["y"].tolist() for answer in answers[1:]] == [[2], [4]]  # type: ignore[index]


async def test_an_error_reaches_its_own_batch_alone(runners: Runners) -> None:
    """All requests of a batch that failed get the error; the next batch is computed as usual."""
    compute = Doubler()
    queue = batcher(compute, runners)
    answers = await asyncio.gather(
        queue.submit("broken", rows(1)), queue.submit("broken", rows(2)), return_exceptions=True
    )
    assert all(isinstance(answer, InternalError) for answer in answers)
    assert (await queue.submit("k", rows(1)))["y"].tolist() == [2]


async def test_a_full_queue_refuses_at_once(runners: Runners) -> None:
    """Rows past the queue's bound are refused with both counts, and the queue takes more once it has room."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, runners, queue_rows=3)
    busy = queue.submit("k", rows(0))
    await settle()
    waiting = queue.submit("k", rows(1, 2))
    await settle()
    with pytest.raises(OverloadedError, match="2 rows wait, and 2 more exceed 3"):
        await queue.submit("k", rows(3, 4))
    compute.gate.set()
    await asyncio.gather(busy, waiting)
    assert (await queue.submit("k", rows(5)))["y"].tolist() == [10]


async def test_a_queue_is_bounded_in_bytes_too(runners: Runners) -> None:
    """Few rows of many bytes are refused likewise, strings counted with what they hold."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, runners, queue_bytes=1000)
    busy = queue.submit("k", rows(0))
    await settle()
    waiting = queue.submit("k", rows(1) | {"s": np.array(["a" * 500], object)})
    await settle()
    assert 500 < queue.waiting_bytes < 700
    with pytest.raises(OverloadedError, match=r"queue: \d+ bytes wait, and \d+ more exceed 1000"):
        await queue.submit("k", rows(2) | {"s": np.array(["b" * 500], object)})
    compute.gate.set()
    await asyncio.gather(busy, waiting)
    assert queue.waiting_bytes == 0


async def test_a_request_larger_than_a_batch_is_computed_in_pieces(runners: Runners) -> None:
    """A request of more rows than a batch holds takes several calls, in turns with the others, and is put together."""
    compute = Doubler()
    queue = batcher(compute, runners, max_rows=4)
    large, small = queue.submit("k", rows(*range(10))), queue.submit("k", rows(20, 21, 22))
    order: list[str] = []
    large.add_done_callback(lambda _: order.append("large"))
    small.add_done_callback(lambda _: order.append("small"))
    answers = await asyncio.gather(large, small)
    assert compute.batches == [("k", 4), ("k", 4), ("k", 4), ("k", 1)]
    assert order == ["small", "large"]
    assert [answer["y"].tolist() for answer in answers] == [[2.0 * i for i in range(10)], [40, 42, 44]]
    assert (queue.waiting_rows, queue.waiting_bytes) == (0, 0)


async def test_pieces_keep_all_runners_busy(pair: Runners) -> None:
    """Two runners compute pieces of one request at once, and whichever ends first, its rows come in their order."""
    both, first_goes = threading.Barrier(2, timeout=20), threading.Event()

    def meet(key: str, inputs: Arrays) -> Arrays:
        del key
        both.wait()
        if inputs["x"][0] == 0:
            assert first_goes.wait(20)
        else:
            first_goes.set()
        return {"y": inputs["x"]}

    answer = await batcher(meet, pair, max_rows=2).submit("k", rows(0, 1, 2, 3))
    assert answer["y"].tolist() == [0, 1, 2, 3]


async def test_what_is_left_of_a_cancelled_request_is_never_computed(runners: Runners) -> None:
    """A caller that goes away between the pieces of its request stops it, and makes room at once."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, runners, max_rows=2)
    large = queue.submit("k", rows(*range(10)))
    await settle()
    assert queue.waiting_rows == 8
    large.cancel()
    assert (queue.waiting_rows, queue.waiting_bytes) == (0, 0)
    compute.gate.set()
    assert (await queue.submit("k", rows(7)))["y"].tolist() == [14]
    assert compute.batches == [("k", 2), ("k", 1)]


async def test_a_piece_that_fails_is_the_end_of_its_request(runners: Runners) -> None:
    """The caller gets the error, and no further piece is computed."""
    compute = Doubler()
    queue = batcher(compute, runners, max_rows=2)
    with pytest.raises(InternalError):
        await queue.submit("broken", rows(*range(10)))
    await settle()
    assert compute.batches == [("broken", 2)]
    assert (queue.waiting_rows, queue.waiting_bytes) == (0, 0)


async def test_under_load_a_call_waits_for_its_crowd(runners: Runners) -> None:
    """Once ten were in flight a call waits for nine, rather than take one after another as they come."""
    compute = Doubler()
    queue = batcher(compute, runners, max_delay_s=1000, max_rows=100)
    await asyncio.gather(*(queue.submit("k", rows(i)) for i in range(10)))
    few = [queue.submit("k", rows(i)) for i in range(5)]
    await settle()
    assert queue.waiting_rows == 5
    more = [queue.submit("k", rows(i)) for i in range(4)]
    await asyncio.gather(*few, *more)
    assert compute.batches == [("k", 10), ("k", 9)]


async def test_a_full_batch_waits_for_nobody(runners: Runners) -> None:
    """Rows that fill a call start it, though fewer requests came than lately."""
    compute = Doubler()
    queue = batcher(compute, runners, max_delay_s=1000)
    await asyncio.gather(*(queue.submit("k", rows(i)) for i in range(8)))
    await queue.submit("k", rows(*range(8)))
    assert compute.batches == [("k", 8), ("k", 8)]


async def test_a_crowd_that_does_not_come_is_waited_for_once(runners: Runners) -> None:
    """The one caller that is left waits `max_delay_s` the first time, and never again."""
    compute = Doubler()
    queue = batcher(compute, runners, max_delay_s=0.05)
    await asyncio.gather(*(queue.submit("k", rows(i)) for i in range(8)))
    last = queue.submit("k", rows(1))
    await settle()
    assert queue.waiting_rows == 1
    await last
    assert last.started - last.arrived > 0.04
    queue._max_delay_s = 1000
    queue._queues["k"]._max_delay_s = 1000
    await queue.submit("k", rows(2))
    assert compute.batches == [("k", 8), ("k", 1), ("k", 1)]


async def test_a_crowd_is_forgotten_in_a_silence(runners: Runners, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a burst and a silence a caller alone is computed at once; right after the burst it would wait."""
    compute = Doubler()
    queue = batcher(compute, runners, max_delay_s=1000)
    await asyncio.gather(*(queue.submit("k", rows(i)) for i in range(8)))
    control = queue.submit("k", rows(1))
    await settle()
    assert queue.waiting_rows == 1
    control.cancel()
    monkeypatch.setattr(queues, "_LATELY_S", 0.0)
    await queue.submit("k", rows(1))
    assert compute.batches == [("k", 8), ("k", 1)]


async def test_an_answered_request_holds_no_rows(runners: Runners) -> None:
    """An answer that waits to be sent, as in a stream that nobody reads, keeps neither rows nor pieces."""
    queue = batcher(Doubler(), runners, max_rows=4)
    requests = [queue.submit("k", rows(*range(10))), queue.submit("k", rows(1))]
    await asyncio.gather(*requests)
    assert [(request.inputs, request._answers) for request in requests] == [({}, {}), ({}, {})]


async def test_an_answer_that_cannot_be_put_together_is_an_error(runners: Runners) -> None:
    """Where there is no memory to join a request's pieces its caller hears of it, and the others get their rows."""

    class Unjoinable(np.ndarray[Any, Any]):
        def __array_function__(self, *_: Any, **__: Any) -> Any:
            raise MemoryError("no room")

    def compute(key: str, inputs: Arrays) -> Arrays:
        del key
        return {"y": inputs["x"].view(Unjoinable)}

    queue = batcher(compute, runners, max_rows=4)
    large, small = queue.submit("k", rows(*range(6))), queue.submit("k", rows(7, 8))
    with pytest.raises(MemoryError):
        await large
    assert (await small)["y"].tolist() == [7, 8]


async def test_leaving_does_not_wait_for_a_call_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that never ends, as on a device that is lost, doesn't keep the service from its end."""
    monkeypatch.setattr(module, "_STOP_S", 0.01)
    compute = Doubler()
    compute.gate.clear()
    with Runners(1) as one:
        hanging = batcher(compute, one).submit("k", rows(1))
        await settle()
    assert not hanging.done()
    compute.gate.set()
    assert (await hanging)["y"].tolist() == [2]


async def test_one_request_after_another_never_waits(runners: Runners) -> None:
    """A caller alone, however long it goes on, is computed at once each time."""
    compute = Doubler()
    queue = batcher(compute, runners, max_delay_s=1000)
    for i in range(100):
        await queue.submit("k", rows(i))
    assert compute.batches == [("k", 1)] * 100


async def test_a_request_and_a_batch_tell_their_times(runners: Runners) -> None:
    """A request's wait, and its call's beginning and end, follow one another; the batch's are those of its call."""
    batches: list[Batch] = []
    queue = batcher(Doubler(), runners, max_rows=2, on_batch=lambda _, batch: batches.append(batch))
    request = queue.submit("k", rows(1, 2, 3))
    await request
    await settle()
    assert [batch.rows for batch in batches] == [2, 1]
    assert request.arrived <= batches[0].started <= batches[0].ended <= batches[1].started <= batches[1].ended
    assert (request.started, request.ended) == (batches[0].started, batches[1].ended)


async def test_runners_work_side_by_side(pair: Runners) -> None:
    """With two runners a second batch doesn't wait for the first."""
    both = threading.Barrier(2, timeout=20)

    def meet(key: str, inputs: Arrays) -> Arrays:
        del key
        both.wait()
        return {"y": inputs["x"]}

    queue = batcher(meet, pair, max_rows=1)
    answers = await asyncio.gather(queue.submit("k", rows(1)), queue.submit("k", rows(2)))
    assert [answer["y"].tolist() for answer in answers] == [[1], [2]]


async def test_under_load_few_rows_join_rather_than_take_another_runner(pair: Runners) -> None:
    """While a short call is under way rows of its kind wait for its end, unless they fill a batch."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, pair, max_rows=4)
    tasks = [queue.submit("k", rows(0))]
    await settle()
    tasks += [queue.submit("k", rows(i)) for i in (1, 2)]
    await settle()
    assert queue.waiting_rows == 2
    tasks += [queue.submit("k", rows(i)) for i in (3, 4)]
    await settle()
    assert queue.waiting_rows == 0
    compute.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(compute.batches) == [("k", 1), ("k", 4)]


async def test_a_free_runner_serves_another_key_at_once(pair: Runners) -> None:
    """Rows that could not join the running call don't wait for it while a runner is free."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, pair)
    tasks = [queue.submit(key, rows(1)) for key in ("slow", "fast")]
    await settle()
    assert queue.waiting_rows == 0
    compute.gate.set()
    await asyncio.gather(*tasks)
    assert sorted(compute.batches) == [("fast", 1), ("slow", 1)]


async def test_models_share_the_runners(runners: Runners) -> None:
    """A model's request waits, and can be cancelled, while another model's call has the only runner."""
    compute, other = Doubler(), Doubler()
    compute.gate.clear()
    first, second = batcher(compute, runners), batcher(other, runners)
    busy = first.submit("k", rows(1))
    await settle()
    waiting = second.submit("k", rows(1))
    await settle()
    assert second.waiting_rows == 1
    waiting.cancel()
    compute.gate.set()
    await busy
    await settle()
    assert other.batches == []
    assert (await second.submit("k", rows(2)))["y"].tolist() == [4]


async def test_rows_count_for_what_they_cost(runners: Runners) -> None:
    """Rows of more samples fill batch and queue sooner."""
    compute = Doubler()
    compute.gate.clear()
    queue = batcher(compute, runners, max_rows=8, queue_rows=10)
    busy = queue.submit("k", rows(0))
    await settle()
    dear = [queue.submit("dear", rows(i), cost=5) for i in (1, 2)]
    await settle()
    assert queue.waiting_rows == 10
    with pytest.raises(OverloadedError):
        await queue.submit("k", rows(3))
    compute.gate.set()
    await asyncio.gather(busy, *dear)
    assert compute.batches == [("k", 1), ("dear", 1), ("dear", 1)]


async def test_few_idle_keys_are_remembered(pair: Runners) -> None:
    """Many seeds leave little behind."""
    queue = batcher(Doubler(), pair, queue_rows=1000)
    for turn in range(20):
        await asyncio.gather(*(queue.submit(f"seed {turn} {i}", rows(i)) for i in range(90)))
    await settle()
    assert len(queue._queues) <= 180
    assert len(pair._queues) <= 1
