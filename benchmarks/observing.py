"""What metrics cost a call of one row: timed in this process, and as a share of the processor time of such a call."""

import argparse
import asyncio
import statistics
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks import models, serving
from vaeserve.bundle import Bundle
from vaeserve.scores import ScoreOptions, Scores, interpret
from vaeserve_service.call import Call
from vaeserve_service.metrics import Metrics
from vaeserve_service.observer import Observer
from vaeserve_service.queues import Backlog, Queue
from vaeserve_service.requests import Batch, Request
from vaeserve_service.runtime import Runtime

REPEATS = 9
CALLS = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--work", type=Path, help="a folder that keeps the model for the next time")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of calls to a server (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the calls (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time what a call of one row, alone in its batch, has counted of it."""
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        costs = _costs(models.tab(work), calls=max(1, round(CALLS * options.scale)))
        asked = argparse.Namespace(
            work=work,
            rounds=options.rounds,
            scale=options.scale,
            naive="thread",
            transport="grpcio",
            only=[serving.ONE_ROW.name],
        )
        served = serving.measure(asked)["workloads"][serving.ONE_ROW.name]["ours"]["cpu_us_per_request"]
    total = sum(costs.values())
    return {
        "us": {name: round(cost, 2) for name, cost in costs.items()} | {"sum": round(total, 2)},
        "cpu_us_per_request": served,
        "share": round(total / served, 4),
    }


def _costs(bundle: Bundle, *, calls: int) -> dict[str, float]:
    """Return what each thing that is counted costs, in microseconds."""
    metrics = Metrics()
    observer = Observer(metrics)
    model, version = bundle.manifest.name, bundle.version
    record = metrics.record(model, version, bundle.manifest.calibration)
    scores, batch = _scores(bundle), _batch()

    def call() -> None:
        seen = Call("vaeserve.v1.VaeService", "Score")
        observer.begin(seen)
        seen.model, seen.version, seen.rows = model, version, 1
        observer.end(seen, grpc.StatusCode.OK)

    counted: dict[str, Callable[[], None]] = {
        "call": call,
        "batch": lambda: record.batch("score", batch),
        "scores": lambda: record.drift.add(scores),
    }
    return {name: _microseconds(count, calls) for name, count in counted.items()}


def _microseconds(count: Callable[[], None], calls: int) -> float:
    return 1e6 / calls * statistics.median(timeit.repeat(count, number=calls, repeat=REPEATS))


def _scores(bundle: Bundle) -> Scores:
    rows = models.rows(bundle.manifest.signature, 1, seed=1)
    outputs = Runtime.load(bundle).score(rows, bundle.noise[: bundle.manifest.num_samples])
    features = bundle.manifest.signature.features
    return interpret(outputs, bundle.calibration, ScoreOptions(), model="", version="", features=features)


def _batch() -> Batch:
    """Return a computed batch of one row."""

    async def taken() -> Batch:
        queue = Queue(lambda inputs: inputs, max_rows=1, max_delay_s=0, backlog=Backlog(), on_batch=lambda _: None)
        rows = {"x": np.zeros((1, 1), np.float32)}
        queue.join(Request(rows, cost=1, queue=queue, loop=asyncio.get_running_loop()))
        return queue.take()

    batch = asyncio.run(taken())
    batch.started, batch.ended = 1.0, 2.0
    return batch
