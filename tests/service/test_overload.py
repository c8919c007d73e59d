"""A service with ten times the load that it can answer, and one that is restarted under load, as their callers see it.

The load follows the answers, ten calls for each, and waits are counted in the answers that others had meanwhile: so
neither depends on how fast a machine is, or whether it stands still for a while.
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
# A request's rows, each counted 128 times for its samples: tens of milliseconds of a processor, many times what its way
# costs, so that callers keep up with what they ask for.
ROWS, SAMPLES = 64, 256
WEIGHT = ROWS * SAMPLES // 2
# How many requests may wait.
QUEUE = 4
# How many calls are made for each that is answered, and for how many.
TIMES, ANSWERED = 10, 60
# Fewer answers than this come until a call has its own: that, one that is computed, and a queue; four times as many,
# for some come while a call travels.
SOON = 4 * (QUEUE + 2)


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

    async def over(self, answers: Answers) -> list["asyncio.Task[None]"]:
        """Make ``TIMES`` calls whenever one is answered OK, until ``ANSWERED`` are; return all calls."""
        calls: list[asyncio.Task[None]] = []
        enough = asyncio.Event()

        def more() -> None:
            calls.extend(asyncio.create_task(call()) for _ in range(TIMES))

        async def call() -> None:
            if await self.one(answers) is not OK:
                return
            if answers.count(OK) < ANSWERED:
                more()
            else:
                enough.set()

        more()
        await enough.wait()
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

    When it is over, callers with 2 s to spare are answered as usual.
    """
    answers, checks = Answers(), Answers()
    async with loaded(models, tmp_path, queue_rows=QUEUE * WEIGHT) as (target, load), checked(target, checks):
        calls = await load.over(answers)
        before = answers.count(OK)
        while (code := await load.one(answers, timeout=2)) is REFUSED:
            pass
        assert code is OK
        assert answers.count(OK) - before < SOON
        await asyncio.gather(*calls)
    assert answers.count(REFUSED) > TIMES / 2 * answers.count(OK)
    assert answers.count(REFUSED) + answers.count(OK) >= len(calls)
    assert np.quantile(answers.waited, 0.99) < SOON
    assert answers.quantile(REFUSED, 0.5) < answers.quantile(OK, 0.5)
    assert checks.count(OK) > 10
    assert checks.quantile(OK, 0.5) < answers.quantile(OK, 0.5)


async def test_with_an_endless_queue_it_would_not(models: Any, tmp_path: Path) -> None:
    """The same load on a queue without an end leaves callers waiting, those too that call when it is over."""
    answers = Answers()
    async with loaded(models, tmp_path, queue_rows=10**12, queue_bytes=10**12) as (_, load):
        calls = await load.over(answers)
        assert np.quantile(answers.waited, 0.99) > SOON
        late, before = asyncio.create_task(load.one(answers)), answers.count(OK)
        while answers.count(OK) <= before + SOON:
            await asyncio.sleep(0.01)
        assert not late.done()
        for call in (late, *calls):
            call.cancel()
    assert answers.count(REFUSED) == 0


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
