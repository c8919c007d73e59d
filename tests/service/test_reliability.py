"""What a caller gets whatever the others do, and what is never computed: each call of ONNX Runtime is counted."""

import asyncio
from itertools import chain
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from tests.service import frames
from tests.service.frames import RawConnection
from tests.service.held import Feeds, HeldService, serving
from vaeserve import AsyncClient
from vaeserve.bundle import Bundle
from vaeserve.errors import InternalError, OverloadedError, UnavailableError
from vaeserve.scores import RowStatus
from vaeserve.tensors import to_tensor, to_tensors
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub
from vaeserve_service.runtime import Runtime

NAME = "table7"
CANCELLED_ONE = f'vaeserve_requests_total{{code="CANCELLED",model="{NAME}",rpc="Score",version="1"}} 1.0'
Rows = NDArray[Any]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def request(row: Rows) -> pb.ScoreRequest:
    """Return a request to score a row."""
    return pb.ScoreRequest(model=pb.ModelSpec(name=NAME), inputs=[to_tensor(row[None])])


def scores(bundle: Bundle, inputs: Feeds) -> NDArray[np.float32]:
    """Return the scores that the runtime gives in one call."""
    computed = Runtime.load(bundle).score(inputs, bundle.noise[: bundle.manifest.num_samples])
    return -computed["elbo"].astype(np.float32)


def calling(target: str) -> AsyncClient:
    """Return a client that makes a call of each call, and none of them again."""
    return AsyncClient(target, coalesce_ms=0, retry=False)


async def occupy(service: HeldService, call: Any) -> "asyncio.Task[Any]":
    """Have a call hold the only runner."""
    busy = asyncio.create_task(call)
    await service.until(lambda: len(service.scorer.runs) == 1)
    return busy


async def until_nobody_listens(target: str) -> None:
    """Make calls on new connections; raises UnavailableError once there is nobody to make one with."""
    while True:
        async with calling(target) as client:
            await client.health()


async def at_their_deadline(target: str, rows: Rows, waiting: asyncio.Event) -> None:
    """Call with less time than the answers will take."""
    del waiting
    async with grpc.aio.insecure_channel(target) as channel:
        score: Any = VaeServiceStub(channel).Score
        errors = await asyncio.gather(*(score(request(row), timeout=2) for row in rows), return_exceptions=True)
        assert {error.code() for error in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}  # type: ignore[union-attr]


async def by_cancelling(target: str, rows: Rows, waiting: asyncio.Event) -> None:
    """Cancel calls that wait."""
    async with grpc.aio.insecure_channel(target) as channel:
        score: Any = VaeServiceStub(channel).Score
        calls = [score(request(row)) for row in rows]
        await waiting.wait()
        for call in calls:
            call.cancel()


async def by_cancelling_a_stream(target: str, rows: Rows, waiting: asyncio.Event) -> None:
    """Cancel a stream whose requests wait."""
    async with grpc.aio.insecure_channel(target) as channel:
        score_stream: Any = VaeServiceStub(channel).ScoreStream
        call = score_stream(iter([request(row) for row in rows]))
        await waiting.wait()
        call.cancel()


async def by_hanging_up(target: str, rows: Rows, waiting: asyncio.Event) -> None:
    """Close a connection on which calls wait."""
    with RawConnection(target) as connection:
        await asyncio.to_thread(connection.greet)
        for stream, row in zip(range(1, 99, 2), rows, strict=False):
            message = frames.message(request(row).SerializeToString())
            connection.send(frames.headers(stream, frames.SCORE) + frames.data(stream, message))
        await waiting.wait()


@pytest.mark.parametrize("leave", [at_their_deadline, by_cancelling, by_cancelling_a_stream, by_hanging_up])
async def test_rows_whose_caller_has_left_are_never_computed(models: Any, rows_of: Any, leave: Any) -> None:
    """Of nine rows that wait, ONNX Runtime sees the one whose caller is still there, alone."""
    rows, waiting = rows_of(NAME, 10), asyncio.Event()
    async with serving(models.repository, NAME) as service, calling(service.target) as client:
        busy = await occupy(service, client.score(NAME, rows[:1]))
        stays = asyncio.create_task(client.score(NAME, rows[1:2]))
        leaving = asyncio.create_task(leave(service.target, rows[2:], waiting))
        await service.until(lambda: service.model.waiting_rows == 9)
        waiting.set()
        await leaving
        await service.until_told("vaeserve_in_flight_requests 2.0")
        assert service.model.waiting_rows == 1
        service.scorer.let()
        answers = await asyncio.gather(busy, stays)
    assert service.scorer.rows.tobytes() == rows[:2].tobytes()
    assert [len(run["numeric"]) for run in service.scorer.runs] == [1, 1]
    assert [answer.score.tobytes() for answer in answers] == [
        score.tobytes() for score in scores(models.bundles[NAME], {"numeric": rows[:2]})
    ]


async def test_a_caller_that_leaves_a_running_call_harms_none_of_the_others(models: Any, rows_of: Any) -> None:
    """One of five whose rows are being computed together cancels: the others get their own."""
    rows = rows_of(NAME, 6)
    async with serving(models.repository, NAME) as service, calling(service.target) as client:
        busy = await occupy(service, client.score(NAME, rows[5:]))
        calls = [asyncio.create_task(client.score(NAME, rows[i : i + 1])) for i in range(5)]
        await service.until(lambda: service.model.waiting_rows == 5)
        service.scorer.let(1)
        await service.until(lambda: len(service.scorer.runs) == 2)
        calls[2].cancel()
        await busy
        await service.until_told("vaeserve_in_flight_requests 4.0")
        service.scorer.let()
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [len(run["numeric"]) for run in service.scorer.runs] == [1, 5]
    expected = scores(models.bundles[NAME], {"numeric": rows})
    assert isinstance(answers.pop(2), asyncio.CancelledError)
    for i, answer in zip((0, 1, 3, 4), answers, strict=True):
        assert answer.score.tobytes() == expected[i : i + 1].tobytes()  # type: ignore[union-attr]


async def test_rows_are_kept_apart_as_requests_are_cut_cancelled_and_broken(models: Any, rows_of: Any) -> None:
    """Large requests in pieces, beside small ones: one is cancelled midway, one broken; the others get their own bits.

    No call has more rows than it may, no row is computed twice, and none of a request that has ended already.
    """
    rows = rows_of(NAME, 300)
    parts = {"whole": slice(0, 100), "broken": slice(100, 200), "cancelled": slice(200, 280)}
    parts |= {f"small {start}": slice(start, start + 5) for start in range(280, 300, 5)}
    at = {row.tobytes(): index for index, row in enumerate(rows)}
    batching = {"max_rows": 16}
    async with (
        serving(models.repository, NAME, batching=batching) as service,
        calling(service.target) as client,
    ):
        runs = service.scorer.runs
        service.scorer.breaks = lambda feeds: bool((feeds["numeric"] == rows[150]).all(axis=1).any())
        busy = await occupy(service, client.score(NAME, rows[:1] + 1))
        calls = {name: asyncio.create_task(client.score(NAME, rows[part])) for name, part in parts.items()}
        await service.until(lambda: service.model.waiting_rows == 300)
        service.scorer.let(6)
        await service.until(lambda: len(runs) == 7)
        calls["cancelled"].cancel()
        await busy
        await service.until_told(CANCELLED_ONE)
        before = len(runs)
        service.scorer.let()
        answers = dict(zip(calls, await asyncio.gather(*calls.values(), return_exceptions=True), strict=True))
    computed = [[at[row.tobytes()] for row in run["numeric"]] for run in runs[1:]]
    assert max(map(len, computed)) <= 16
    assert len({*chain(*computed)}) == sum(map(len, computed))
    (broke,) = [number for number, indices in enumerate(computed) if 150 in indices]
    assert not set(range(100, 200)) & {*chain(*computed[broke + 1 :])}
    assert not set(range(200, 280)) & {*chain(*computed[before:])}
    assert isinstance(answers.pop("cancelled"), asyncio.CancelledError)
    for name, answer in answers.items():
        part = parts[name]
        if set(range(part.start, part.stop)) & set(computed[broke]):
            assert isinstance(answer, InternalError)
        else:
            expected = scores(models.bundles[NAME], {"numeric": rows[part]})
            assert answer.score.tobytes() == expected.tobytes()  # type: ignore[union-attr]
    assert isinstance(answers["broken"], InternalError)
    assert sum(isinstance(answer, InternalError) for answer in answers.values()) < len(answers)


def poison(inputs: Feeds) -> dict[str, tuple[Feeds, RowStatus]]:
    """Return a row for each thing that can be wrong with one, and what its status should be."""

    def changed(name: str, column: int, value: Any) -> Feeds:
        array = inputs[name].astype(object if name == "categorical" else np.float32)
        array[0, column] = value
        return inputs | {name: array}

    nothing = {"numeric": np.full_like(inputs["numeric"], np.nan), "categorical": np.full((1, 3), "", object)}
    return {
        "missing": (changed("numeric", 0, np.nan), RowStatus.UNSCORABLE_MISSING),
        "no category": (changed("categorical", 1, ""), RowStatus.UNSCORABLE_MISSING),
        "nothing": (nothing, RowStatus.UNSCORABLE_MISSING),
        "infinite": (changed("numeric", 1, np.inf), RowStatus.UNSCORABLE_NOT_FINITE),
        "as small": (changed("numeric", 2, -np.inf), RowStatus.UNSCORABLE_NOT_FINITE),
        "unknown": (changed("categorical", 1, "\0 never seen"), RowStatus.OK),  # it is as rare as can be
        "huge": (changed("numeric", 0, 1e38), RowStatus.OK),
        "as low": (changed("numeric", 5, -3.4e38), RowStatus.OK),
    }


async def test_poison_rows_spoil_none_of_their_batch(models: Any, inputs_of: Any) -> None:
    """Good rows have the bits that they have alone, in one call with rows that are wrong in every way."""
    name = "mixed"
    inputs = inputs_of(name, 12)
    bad = poison({key: array[:1] for key, array in inputs_of(name, 1, seed=2).items()})
    good = [{key: array[i : i + 1] for key, array in inputs.items()} for i in range(12)]

    async with (
        serving(models.repository, name) as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):

        async def score(row: Feeds) -> pb.ScoreResponse:
            asked = pb.ScoreRequest(model=pb.ModelSpec(name=name), inputs=to_tensors(row))
            response: pb.ScoreResponse = await VaeServiceStub(channel).Score(asked, timeout=30)
            return response

        busy = await occupy(service, score(good[0]))
        calls = [asyncio.create_task(score(row)) for row in good[:6]]
        spoilt = {what: asyncio.create_task(score(row)) for what, (row, _) in bad.items()}
        calls += [asyncio.create_task(score(row)) for row in good[6:]]
        await service.until(lambda: service.model.waiting_rows == len(good) + len(bad))
        service.scorer.let()
        answers = await asyncio.gather(busy, *calls)
        refused = dict(zip(spoilt, await asyncio.gather(*spoilt.values()), strict=True))
    assert [len(run["numeric"]) for run in service.scorer.runs] == [1, len(good) + len(bad)]
    for row, answer in zip(good, answers[1:], strict=True):
        assert np.float32(answer.score[0]) == scores(models.bundles[name], row)[0]
        assert list(answer.status) == [pb.OK]
    for what, answer in refused.items():
        status = bad[what][1]
        assert list(answer.status) == [int(status)], what
        assert np.isfinite(answer.score[0]) == (status == RowStatus.OK)
        assert not (answer.anomalous[0] and status != RowStatus.OK)


async def test_health_answers_while_the_queue_is_full(models: Any, rows_of: Any) -> None:
    """As nothing is computed and rows are refused, every check is answered, and what was accepted is so later."""
    rows = rows_of(NAME, 10)
    limits = {"queue_rows": 10}
    async with (
        serving(models.repository, NAME, limits=limits) as service,
        calling(service.target) as client,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        busy = await occupy(service, client.score(NAME, rows[:1]))
        full = asyncio.create_task(client.score(NAME, rows))
        await service.until(lambda: service.model.waiting_rows == 10)
        health: Any = health_pb2_grpc.HealthStub(channel)
        for _ in range(100):
            with pytest.raises(OverloadedError, match="queue: 10 rows wait, and 1 more exceed 10; retry later"):
                await client.score(NAME, rows[:1])
            assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == SERVING
        service.scorer.let()
        assert len((await busy).score) == 1
        assert len((await full).score) == 10
    assert [len(run["numeric"]) for run in service.scorer.runs] == [1, 10]


async def test_a_drain_ends_what_is_in_pieces_and_what_waits(models: Any, rows_of: Any) -> None:
    """Told to stop within a large request, the service computes the rest of it and all that waits, and no more."""
    rows = rows_of(NAME, 105)
    batching = {"max_rows": 16}
    async with (
        serving(models.repository, NAME, batching=batching) as service,
        calling(service.target) as client,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        large = await occupy(service, client.score(NAME, rows[:100]))
        small = [asyncio.create_task(client.score(NAME, rows[i : i + 1])) for i in range(100, 105)]
        await service.until(lambda: service.model.waiting_rows == 100 - 16 + 5)
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        service.stop.set()
        assert (await watch.read()).status == NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        with pytest.raises(UnavailableError):
            await until_nobody_listens(service.target)
        service.scorer.let()
        answers = await asyncio.gather(large, *small)
        await service.ended
    expected = scores(models.bundles[NAME], {"numeric": rows})
    assert b"".join(answer.score.tobytes() for answer in answers) == expected.tobytes()
    assert sum(len(run["numeric"]) for run in service.scorer.runs) == 105
