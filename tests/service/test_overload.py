"""A service with ten times the load that it can answer, and one that is restarted under load, as their callers see it.

What is bounded is so by how many answers others had meanwhile, and by other calls of the same run, never by a
machine's speed: one that stands still for half a second holds up the clock, and not the order.
"""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from vaeserve.local import serve_locally
from vaeserve.tensors import to_tensor
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub

NAME = "table33"
OK, REFUSED = grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED
SERVING = health_pb2.HealthCheckResponse.SERVING
# A request's rows, each counted 64 times for its samples: some milliseconds of a processor.
ROWS, SAMPLES = 64, 128
WEIGHT = ROWS * SAMPLES // 2
# How many requests may wait.
QUEUE = 4


@dataclass
class Answers:
    """When calls were answered, in seconds after they were made, by their codes.

    ``waited`` has for each call that was answered OK how many such answers came from when it was made, its own too.
    """

    seconds: dict[grpc.StatusCode, list[float]] = field(default_factory=dict)
    waited: list[int] = field(default_factory=list)

    def quantile(self, code: grpc.StatusCode, share: float) -> float:
        """Return within how many seconds that share of the answers of a code came."""
        return float(np.quantile(self.seconds[code], share))

    def count(self, code: grpc.StatusCode) -> int:
        """Return how many had a code."""
        return len(self.seconds.get(code, []))


class Load:
    """Requests to one service."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._score: Any = VaeServiceStub(channel).Score
        rows = np.random.default_rng(0).normal(size=(ROWS, 33)).astype(np.float32)
        self._request = pb.ScoreRequest(model=pb.ModelSpec(name=NAME), inputs=[to_tensor(rows)], num_samples=SAMPLES)

    async def one(self, answers: Answers, *, timeout: float = 60) -> grpc.StatusCode:
        """Make a call, and note how it ended and when."""
        started, before = time.perf_counter(), answers.count(OK)
        code: grpc.StatusCode = await self._score(self._request, timeout=timeout).code()
        answers.seconds.setdefault(code, []).append(time.perf_counter() - started)
        if code is OK:
            answers.waited.append(answers.count(OK) - before)
        return code

    async def rate(self) -> float:
        """Return how many calls a second the service answers, measured as it always has one to compute."""
        for count in (4, 40):
            started = time.perf_counter()
            for _ in range(count // 2):
                answers = Answers()
                await asyncio.gather(self.one(answers), self.one(answers))
                assert answers.count(OK) == 2
        return count / (time.perf_counter() - started)

    async def at(self, rate: float, seconds: float, answers: Answers) -> list["asyncio.Task[Any]"]:
        """Make calls at a rate, whatever becomes of them; return them all."""
        calls = []
        started = time.perf_counter()
        for number in range(int(rate * seconds)):
            if (early := started + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            calls.append(asyncio.create_task(self.one(answers)))
        return calls


@asynccontextmanager
async def checked(target: str, checks: Answers) -> AsyncIterator[None]:
    """Ask for the service's health all the time, on a connection of its own."""

    async def check() -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                started = time.perf_counter()
                assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == SERVING
                checks.seconds.setdefault(OK, []).append(time.perf_counter() - started)
                await asyncio.sleep(0.01)

    checking = asyncio.create_task(check())
    try:
        yield
        assert not checking.done(), checking.exception()
    finally:
        checking.cancel()
        await asyncio.gather(checking, return_exceptions=True)


@asynccontextmanager
async def loaded(models: Any, folder: Path, **limits: int) -> AsyncIterator[tuple[str, Load]]:
    """Serve a model on one runner, a request a call."""
    settings = {"repository.models": json.dumps([NAME]), "runtime.runners": 1, "batching.max_rows": WEIGHT}
    settings |= {f"limits.{name}": value for name, value in limits.items()}
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    with serve_locally(models.repository, log=folder / "log", options=options) as service:
        async with grpc.aio.insecure_channel(service.target) as channel:
            yield service.target, Load(channel)


async def test_at_ten_times_its_load_a_service_answers_what_it_takes_and_refuses_the_rest(
    models: Any, tmp_path: Path
) -> None:
    """What it takes is answered once its queue is, the rest hears no at once, and health is told throughout.

    Within 2 s of the last call it answers as usual.
    """
    answers, checks = Answers(), Answers()
    async with loaded(models, tmp_path, queue_rows=QUEUE * WEIGHT) as (target, load):
        rate = await load.rate()
        async with checked(target, checks):
            calls = await load.at(10 * rate, 2, answers)
            ended = time.perf_counter()
        while await load.one(Answers()) is not OK:
            pass
        recovered = time.perf_counter()
        await asyncio.gather(*calls)
    assert answers.count(OK) + answers.count(REFUSED) == len(calls)
    assert answers.count(REFUSED) > answers.count(OK) > 0
    # Itself, the one that is computed, and a queue of which some was answered before the call had been read.
    assert np.quantile(answers.waited, 0.99) < 4 * (QUEUE + 2)
    assert answers.quantile(REFUSED, 0.5) < answers.quantile(OK, 0.5)
    assert checks.count(OK) > 10
    assert checks.quantile(OK, 0.5) < answers.quantile(OK, 0.5)
    assert recovered - ended < 2


async def test_with_an_endless_queue_it_would_not(models: Any, tmp_path: Path) -> None:
    """The same load on a queue without an end leaves callers waiting, and 2 s later it isn't over."""
    answers = Answers()
    async with loaded(models, tmp_path, queue_rows=10**12, queue_bytes=10**12) as (_, load):
        rate = await load.rate()
        calls = await load.at(10 * rate, 2, answers)
        assert await load.one(Answers(), timeout=2) is grpc.StatusCode.DEADLINE_EXCEEDED
        waiting = [call for call in calls if not call.done()]
        for call in waiting:
            call.cancel()
    assert answers.count(REFUSED) == 0
    assert len(waiting) > len(calls) / 2
    assert np.quantile(answers.waited, 0.99) > 4 * (QUEUE + 2)


async def test_a_restart_under_load_fails_no_call(models: Any, tmp_path: Path) -> None:
    """While one of two services is stopped, callers that follow health as gRPC's clients do see nothing but OK."""
    policy = {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
    options = ["--set", "drain.lame_duck_s=1", "--set", f"repository.models={json.dumps([NAME])}"]
    codes: list[grpc.StatusCode] = []
    with (
        serve_locally(models.repository, log=tmp_path / "stops", options=options) as stops,
        serve_locally(models.repository, log=tmp_path / "stays", options=options) as stays,
    ):
        addresses = f"ipv4:{stops.target},{stays.target}"
        async with grpc.aio.insecure_channel(addresses, [("grpc.service_config", json.dumps(policy))]) as channel:
            load, done = Load(channel), asyncio.Event()

            async def call() -> None:
                while not done.is_set():
                    codes.append(await load.one(Answers()))

            callers = [asyncio.create_task(call()) for _ in range(8)]
            while len(codes) < 100:
                await asyncio.sleep(0.01)
            stops.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(stops.process.wait, 60) == 0
            stopped = len(codes)
            while len(codes) < stopped + 100:
                await asyncio.sleep(0.01)
            done.set()
            await asyncio.gather(*callers)
    assert set(codes) == {OK}
