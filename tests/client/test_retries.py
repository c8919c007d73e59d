"""Calls that are made again: which, when, until when, and what is said in the end."""

import asyncio
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaeserve import AsyncClient, Client
from vaeserve.errors import (
    DeadlineError,
    InternalError,
    InvalidInputError,
    OverloadedError,
    ServerError,
    UnavailableError,
    VaeserveError,
)
from vaeserve.local import HOST, serve_locally
from vaeserve.retries import PUSHBACK, RETRIED, Retry
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceServicer, add_VaeServiceServicer_to_server

ROW = np.zeros((1, 7), np.float32)
Ends = Callable[[Any], None]


class Failed:
    """A call that ended with a code, as gRPC's errors tell it."""

    def __init__(self, code: grpc.StatusCode, *trailers: tuple[str, str], details: str = "") -> None:
        self.code: Any = lambda: code
        self.details: Any = lambda: details
        self.trailing_metadata: Any = lambda: trailers


@given(st.sampled_from(list(grpc.StatusCode)), st.integers(0, 10_000), st.none() | st.integers(-5, 60_000))
def test_a_delay_is_the_services_and_some_jitter(code: grpc.StatusCode, attempt: int, pushback: int | None) -> None:
    """Only what is safe is tried again: after the time that the service asks for, and at most the backoff on top."""
    retry = Retry(first_s=0.1, longest_s=2.0)
    trailers = () if pushback is None else ((PUSHBACK, str(pushback)),)
    delay = retry.delay(Failed(code, *trailers), attempt)
    if code not in RETRIED or (pushback or 0) < 0:
        assert delay is None
    else:
        assert delay is not None
        asked = (pushback or 0) / 1000
        assert asked <= delay <= asked + min(2.0, 0.1 * 2 ** min(attempt, 30))


def test_delays_differ_and_grow() -> None:
    """Callers who fail together don't come back together, and those who fail often come back seldom."""
    retry, error = Retry(), Failed(grpc.StatusCode.UNAVAILABLE)
    early, late = ([retry.delay(error, attempt) or 0 for _ in range(200)] for attempt in (0, 10))
    assert len(set(early)) > 190
    assert max(early) <= retry.first_s < np.mean(late) < retry.longest_s
    assert retry.delay(Failed(grpc.StatusCode.UNAVAILABLE, (PUSHBACK, "soon")), 0) is None
    assert retry.delay(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, details="larger than max (9 vs. 8)"), 0) is None


class Ending(VaeServiceServicer):
    """A service whose calls end as a test says, each by the next word, and then well."""

    def __init__(self, ends: list[Ends]) -> None:
        self.ends = ends
        self.streams: list[Ends] = []
        self.times: list[float] = []
        self.left: list[float] = []
        self.asked_s = 0.0

    def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802 - the wire's name
        """Tell of a model with one column, after a while."""
        self.left.append(context.time_remaining())
        time.sleep(self.asked_s)
        spec = pb.TensorSpec(name="numeric", dtype=pb.FLOAT32, shape=[-1, 1])
        column = pb.Column(name="c", kind="numeric")
        return pb.GetModelResponse(model=request.model, inputs=[spec], columns=[column], manifest="{}")

    def Score(self, request: pb.ScoreRequest, context: Any) -> pb.ScoreResponse:  # noqa: N802 - the wire's name
        """End a call."""
        self.times.append(time.monotonic())
        self.left.append(context.time_remaining())
        if self.ends:
            self.ends.pop(0)(context)
        rows = request.inputs[0].shape[0]
        return pb.ScoreResponse(model=request.model, score=[1.0] * rows, status=[pb.OK] * rows)

    def ScoreStream(self, requests: Iterator[pb.ScoreRequest], context: Any) -> Iterator[pb.ScoreResponse]:  # noqa: N802
        """End a stream before it is read, or answer it."""
        if self.streams:
            self.streams.pop(0)(context)
        for request in requests:
            yield self.Score(request, context)


def ending(code: grpc.StatusCode, *trailers: tuple[str, str]) -> Ends:
    """Return what ends a call with a code."""

    def end(context: Any) -> None:
        context.set_trailing_metadata(trailers)
        context.abort(code, "on purpose")

    return end


@contextmanager
def served(*ends: Ends) -> Iterator[tuple[str, Ending]]:
    """Serve; yield the target, and the service."""
    service = Ending(list(ends))  # type: ignore[abstract]
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        add_VaeServiceServicer_to_server(service, server)
        port = server.add_insecure_port(f"{HOST}:0")
        server.start()
        try:
            yield f"{HOST}:{port}", service
        finally:
            server.stop(0).wait()


def score_by_thread(target: str, **options: Any) -> Any:
    """Score a row with `Client`."""
    timeout = options.pop("timeout", 20)
    with Client(target, timeout=timeout, **options) as client:
        return client.score("m", ROW)


def score_by_task(target: str, **options: Any) -> Any:
    """Score a row with `AsyncClient`."""

    async def score() -> Any:
        timeout = options.pop("timeout", 20)
        async with AsyncClient(target, timeout=timeout, **options) as client:
            return await client.score("m", ROW)

    return asyncio.run(score())


BOTH = pytest.mark.parametrize("score", [score_by_thread, score_by_task])


@BOTH
def test_what_the_service_could_not_take_is_sent_again(score: Any) -> None:
    """More often than gRPC's five times; a service that asks for a time is given it; and the answer is the caller's."""
    unavailable = ending(grpc.StatusCode.UNAVAILABLE)
    full = ending(grpc.StatusCode.RESOURCE_EXHAUSTED, (PUSHBACK, "300"))
    with served(*[unavailable] * 6, full) as (target, service):
        assert score(target).score.tolist() == [1.0]
    assert len(service.times) == 8
    assert service.times[7] - service.times[6] >= 0.3


@BOTH
def test_nothing_is_sent_again_where_it_must_not(score: Any) -> None:
    """Not with the flag off, not if the service says never, not after a fault of the caller's or of the service's."""
    for code, trailers, options, expected in (
        (grpc.StatusCode.UNAVAILABLE, (), {"retry": False}, UnavailableError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ((PUSHBACK, "-1"),), {}, OverloadedError),
        (grpc.StatusCode.INVALID_ARGUMENT, (), {}, InvalidInputError),
        (grpc.StatusCode.INTERNAL, (("x-request-id", "abc"),), {}, InternalError),
    ):
        with served(ending(code, *trailers)) as (target, service):
            with pytest.raises(expected, match=f"{target}: on purpose") as failed:
                score(target, **options)
            assert isinstance(failed.value.__cause__, grpc.RpcError)
            assert ("(request abc)" in str(failed.value)) == (expected is InternalError)
        assert len(service.times) == 1


@BOTH
def test_a_time_that_would_be_too_late_is_not_waited_for(score: Any) -> None:
    """Where the service asks for more time than there is, its refusal is told at once."""
    full = ending(grpc.StatusCode.RESOURCE_EXHAUSTED, (PUSHBACK, "60000"))
    with served(full) as (target, service):
        started = time.monotonic()
        with pytest.raises(OverloadedError, match="on purpose"):
            score(target, timeout=30)
        assert time.monotonic() - started < 30
    assert len(service.times) == 1


@BOTH
def test_an_address_where_nothing_is_is_unavailable(score: Any) -> None:
    """Who refuses connections, and who takes them and never speaks, is told as no service, with what is known of it."""
    with pytest.raises(UnavailableError, match=r"127.0.0.1:1: .*[Cc]onnection refused.* attempts; 0.5 s are over"):
        score("127.0.0.1:1", timeout=0.5)
    with socket.socket() as mute:
        mute.bind((HOST, 0))
        mute.listen()
        target = f"{HOST}:{mute.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=f"{target}: no connection within 0.3 s"):
            score(target, timeout=0.3)


@BOTH
def test_a_service_that_is_slow_is_late(score: Any) -> None:
    """One that has the call and doesn't answer is a DeadlineError."""
    over = threading.Event()
    with served(lambda _: None, lambda _: late(over)) as (target, service):
        with Client(target) as client:
            client.score("m", ROW)
        with pytest.raises(DeadlineError, match=f"{target}: no answer within 0.5 s"):
            score(target, timeout=0.5)
        over.set()
    assert len(service.times) == 2


def test_all_that_a_call_takes_is_within_its_time() -> None:
    """What it costs to ask for the signature is taken off the time for the scores."""
    with served() as (target, service):
        service.asked_s = 0.5
        with Client(target) as client:
            assert len(client.score("m", {"c": [1.0]}, timeout=5)) == 1
        asked, scored = service.left
        assert scored < asked - service.asked_s / 2  # for gRPC rounds what is left up


async def test_calls_end_with_their_client() -> None:
    """Whose client is closed meanwhile hears of it, alone or joined; none of the tasks counts as cancelled."""
    over = threading.Event()
    with served(*[lambda _: late(over)] * 3) as (target, service):
        client = AsyncClient(target)
        calls = [client.score("m", ROW, seed=1), client.score("m", ROW), client.score("m", ROW), client.score("m", ROW)]
        tasks = [asyncio.create_task(call) for call in calls]
        while len(service.times) < 3:
            await asyncio.sleep(0.001)
        await client.close()
        for task in tasks:
            with pytest.raises(InvalidInputError, match=f"{target}: Channel is closed.; expected an open client"):
                await task
        over.set()


async def test_tasks_hear_why_a_stream_ended() -> None:
    """Of most streams that end as it writes, gRPC's asyncio client says INTERNAL: ours asks what it was."""
    batches = [ROW[:, :1]] * 16
    with served() as (target, service):
        async with AsyncClient(target) as client:
            for _ in range(20):
                service.streams = [ending(grpc.StatusCode.UNAVAILABLE)] * 2
                assert len([scores async for scores in client.score_stream("m", batches)]) == 16
            for _ in range(20):
                service.ends, service.streams = ([ending(grpc.StatusCode.UNAUTHENTICATED)] for _ in range(2))
                with pytest.raises(ServerError, match="on purpose"):
                    await anext(aiter(client.score_stream("m", batches)))


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), 1e10, "5"])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    """What is none is refused as the client is made, and as it calls."""
    with pytest.raises(InvalidInputError, match="timeout: .*; expected seconds, more than 0"):
        Client("127.0.0.1:1", timeout=timeout)
    with Client("127.0.0.1:1") as client, pytest.raises(InvalidInputError, match="timeout: "):
        client.score("m", ROW, timeout=timeout)


def late(over: threading.Event) -> None:
    """Keep a call until its caller has gone."""
    over.wait(20)


class Under:
    """Callers that call without end, and how their calls ended."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self.answered = 0
        self.failures: list[VaeserveError] = []

    def call(self, score: Callable[[], Any]) -> None:
        """Call until it is over."""
        while not self.over.is_set():
            try:
                score()
            except VaeserveError as error:
                self.failures.append(error)
                time.sleep(0.01)
            else:
                self.answered += 1

    def stream(self, client: Client, rows: Any) -> None:
        """Have a stream scored until it is over."""
        expected = client.score("table7", rows).score.tobytes()

        def batches() -> Iterator[Any]:
            while not self.over.is_set():
                yield rows

        for scores in client.score_stream("table7", batches()):
            assert scores.score.tobytes() == expected
            self.answered += 1


async def stream_by_tasks(target: str, rows: Any, under: Under) -> None:
    """Have a stream scored until it is over."""

    async def batches() -> AsyncIterator[Any]:
        while not under.over.is_set():
            await asyncio.sleep(0)
            yield rows

    async with AsyncClient(target) as client:
        async for _ in client.score_stream("table7", batches()):
            under.answered += 1


async def by_tasks(target: str, rows: Any, under: Under) -> None:
    """Have tasks call until it is over."""
    async with AsyncClient(target) as client:

        async def call(row: Any) -> None:
            while not under.over.is_set():
                try:
                    await client.score("table7", row[None])
                except VaeserveError as error:
                    under.failures.append(error)
                else:
                    under.answered += 1

        await asyncio.gather(*map(call, rows))


def test_no_call_is_lost_to_a_restart(models: Any, rows_of: Any, tmp_path: Any) -> None:
    """Threads, tasks and streams call all the while as the service is stopped and started again: none fails.

    The same calls without retries do.
    """
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port = taken.getsockname()[1]
    options = ["--set", 'repository.models=["table7"]', "--grpc-port", str(port)]
    options += ["--set", "drain.grace_s=2"]  # which the stream takes to the full
    rows, under, control = rows_of("table7", 8), Under(), Under()
    target = f"{HOST}:{port}"

    def serve_for(answers: int, log: str) -> None:
        """Serve until so many calls more are answered, and stop."""
        with serve_locally(models.repository, log=tmp_path / log, options=options) as service:
            enough = under.answered + answers
            while under.answered < enough and not under.failures:
                time.sleep(0.01)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(60) == 0

    with ThreadPoolExecutor(12) as pool, Client(target) as client, Client(target, retry=False) as bare:
        calls = [pool.submit(under.call, partial(client.score, "table7", row[None])) for row in rows]
        calls.append(pool.submit(under.stream, client, rows))
        calls.append(pool.submit(asyncio.run, by_tasks(target, rows, under)))
        calls.append(pool.submit(asyncio.run, stream_by_tasks(target, rows, under)))
        calls.append(pool.submit(control.call, partial(bare.score, "table7", rows)))
        try:
            serve_for(200, "first")
            serve_for(200, "second")
            with serve_locally(models.repository, log=tmp_path / "third", options=options):
                under.over.set()
                control.over.set()
                for call in calls:
                    call.result(60)
        finally:
            under.over.set()
            control.over.set()
    assert under.failures == []
    assert UnavailableError in {type(error) for error in control.failures}
