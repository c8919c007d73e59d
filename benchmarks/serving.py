"""The service against the server that a user would write: processor time and throughput, side by side.

Both serve the reference model "tab" at once and are loaded in turns, so that the machine's drift meets both alike.
"""

import argparse
import contextlib
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import models, peers
from benchmarks.load import Call, Load, flood, one_by_one
from benchmarks.peers import Server
from vaeserve.bundle import Bundle
from vaeserve.client import Client
from vaeserve.messages import score_request, spec
from vaeserve.scores import ScoreOptions, Scores, interpret
from vaeserve.v1 import vae_pb2 as pb
from vaeserve_service.runtime import TOLERANCE, Runtime, largest_error

NUMBERS = ("score", "elbo", "log_likelihood", "kl", "p_value")
CHECKED_CALLS = 20


@dataclass(frozen=True)
class Workload:
    """Rows in a request, requests in flight (one, or connections of streams), and requests a round."""

    name: str
    rows: int
    requests: int
    connections: int = 1
    streams: int = 1

    def load(self, server: Server, call: Call, *, requests: int) -> Load:
        """Load a server with some calls."""
        if self.connections * self.streams == 1:
            return one_by_one(server.target, call, requests=requests)
        return flood(server.target, call, requests=requests, connections=self.connections, streams=self.streams)


WORKLOADS = (
    Workload("W1", rows=1, requests=10_000, connections=4, streams=16),
    Workload("W2", rows=256, requests=3_000, connections=2, streams=4),
    Workload("W3", rows=1, requests=3_000),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--work", type=Path, help="a folder that keeps the model for the next time")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take medians of (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the requests of a round (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every workload on both servers."""
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = models.tab(work)
        servers = (
            stack.enter_context(peers.ours(bundle, log=work / "ours.log")),
            stack.enter_context(peers.naive(bundle, log=work / "naive.log")),
        )
        workloads = {
            workload.name: _compare(workload, servers, bundle, rounds=options.rounds, scale=options.scale)
            for workload in WORKLOADS
        }
    return {"rounds": options.rounds, "model_sha256": bundle.manifest_sha256, "workloads": workloads}


def _compare(
    workload: Workload, servers: tuple[Server, Server], bundle: Bundle, *, rounds: int, scale: float
) -> dict[str, Any]:
    requests = max(1, round(scale * workload.requests))
    rows = models.rows(workload.rows, seed=1)
    expected = _expected(bundle, rows)
    call = Call(
        score_request(spec(bundle.manifest.name, ""), {"numeric": rows}, ScoreOptions()).SerializeToString(),
        _answer(expected).SerializeToString(),
    )
    errors = {server.name: _check(server, rows, expected, workload, call, requests) for server in servers}
    figures: dict[str, list[dict[str, float]]] = {server.name: [] for server in servers}
    for _ in range(rounds):
        for server in servers:
            figures[server.name].append(_round(server, workload, call, requests))
    medians = {name: _medians(measured) for name, measured in figures.items()}
    return {
        "load": asdict(workload) | {"requests": requests},
        "largest_error": errors,
        **medians,
        "ours_to_naive": _ratios(*figures.values()),
        "rounds": figures,
    }


def _expected(bundle: Bundle, rows: NDArray[np.float32]) -> Scores:
    """Return what ONNX Runtime gives in this process."""
    outputs = Runtime.load(bundle).score({"numeric": rows}, bundle.noise[: bundle.manifest.num_samples])
    return interpret(
        outputs,
        bundle.calibration,
        ScoreOptions(),
        model=bundle.manifest.name,
        version=bundle.version,
        features=bundle.manifest.signature.features,
    )


def _answer(scores: Scores) -> pb.ScoreResponse:
    return pb.ScoreResponse(
        model=spec(scores.model, scores.version),
        **{name: getattr(scores, name).tolist() for name in (*NUMBERS, "anomalous", "status")},
    )


def _check(
    server: Server,
    rows: NDArray[np.float32],
    expected: Scores,
    workload: Workload,
    call: Call,
    requests: int,
) -> float:
    """Compare answers that come while the server is under load, which warms it up too; return the largest error.

    Raises RuntimeError for one past the tolerance, or another verdict.
    """
    error = 0.0
    with ThreadPoolExecutor(1) as background, Client(server.target) as client:
        load = background.submit(workload.load, server, call, requests=requests)
        for _ in range(CHECKED_CALLS):
            scores = client.score(expected.model, rows)
            for name in NUMBERS:
                error = max(error, largest_error(getattr(scores, name), getattr(expected, name)))
            same = (scores.anomalous == expected.anomalous).all() and (scores.status == expected.status).all()
            if error > TOLERANCE or not same:
                raise RuntimeError(f"{server.name}: wrong answers to {workload.name}, off by {error:.2g}")
        load.result()
    return error


def _round(server: Server, workload: Workload, call: Call, requests: int) -> dict[str, float]:
    """Load a server once; raises RuntimeError unless it counted each call, and as OK."""
    codes, cpu = server.codes(), server.cpu_seconds()
    load = workload.load(server, call, requests=requests)
    cpu = server.cpu_seconds() - cpu
    ended = server.codes() - codes
    if server.metrics and ended != {"OK": requests}:
        raise RuntimeError(f"{server.name}: calls ended with {dict(ended)}; expected {requests} with OK")
    figures = {"cpu_us_per_request": round(1e6 * cpu / requests, 1), "requests_per_s": load.requests_per_s}
    return figures if load.p50_us is None else figures | {"p50_us": load.p50_us}


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(figures[name] for figures in rounds), 1) for name in rounds[0]}


def _ratios(ours: list[dict[str, float]], naive: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of the rounds' ratios: a round's two loads are neighbours in time."""
    pairs = list(zip(ours, naive, strict=True))
    return {name: round(statistics.median(a[name] / b[name] for a, b in pairs), 3) for name in ours[0]}
