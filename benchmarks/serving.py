"""The service against the server that a user would write: processor time and throughput, side by side.

Both serve a reference model at once and are loaded in turns, so that the machine's drift meets both alike.
"""

import argparse
import contextlib
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import grpc

from benchmarks import models, peers
from benchmarks.load import Call, Load, flood, one_by_one
from benchmarks.peers import Server
from vaeserve.bundle import Bundle
from vaeserve.messages import read_scores, score_request, spec
from vaeserve.scores import ScoreOptions, Scores, interpret
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub
from vaeserve_service.config import Transport
from vaeserve_service.runtime import TOLERANCE, Runtime, largest_error

NUMBERS = ("score", "elbo", "log_likelihood", "kl", "p_value")
CHECKED_CALLS = 20


@dataclass(frozen=True)
class Workload:
    """Requests of so many rows: how many a round, and how many are in flight.

    connections * streams: calls at once; messages: requests to a call, more than one of which are a ScoreStream, and
    then `peers.IN_FLIGHT` of each are in flight.
    """

    name: str
    model: Callable[[Path], Bundle]
    rows: int
    requests: int
    connections: int = 1
    streams: int = 1
    messages: int = 1

    def call(self, bundle: Bundle, expected: Scores) -> Call:
        """Return the call to make."""
        return Call(
            "Score" if self.messages == 1 else "ScoreStream",
            self.request(bundle).SerializeToString(),
            _answer(expected).SerializeToString(),
            self.messages,
        )

    def request(self, bundle: Bundle) -> pb.ScoreRequest:
        """Return the request to repeat."""
        rows = models.rows(bundle.manifest.signature, self.rows, seed=1)
        return score_request(spec(bundle.manifest.name, ""), rows, ScoreOptions())

    def load(self, server: Server, call: Call, *, calls: int) -> Load:
        """Load a server."""
        if self.connections * self.streams * self.messages == 1:
            return one_by_one(server.target, call, calls=calls)
        return flood(server.target, call, calls=calls, connections=self.connections, streams=self.streams)

    def answers(self, server: Server, bundle: Bundle) -> Iterator[Scores]:
        """Yield the answers to some requests."""
        request = self.request(bundle)
        with grpc.insecure_channel(server.target) as channel:
            stub = VaeServiceStub(channel)
            if self.messages == 1:
                yield from (read_scores(stub.Score(request)) for _ in range(CHECKED_CALLS))
            else:
                yield from map(read_scores, stub.ScoreStream(iter([request] * CHECKED_CALLS)))


ONE_ROW = Workload("W1", models.tab, rows=1, requests=10_000, connections=4, streams=16)
# Each with what the other server is loaded with.
WORKLOADS = (
    (ONE_ROW, ONE_ROW),
    (Workload("W1 as ScoreStream", models.tab, rows=1, requests=20_000, messages=5000), ONE_ROW),
    *(
        (workload, workload)
        for workload in (
            Workload("W2", models.tab, rows=256, requests=3_000, connections=2, streams=4),
            Workload("W3", models.tab, rows=1, requests=3_000),
            Workload("W4", models.img, rows=64, requests=2_000, connections=2, streams=4),
        )
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--work", type=Path, help="a folder that keeps the models for the next time")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take medians of (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the requests of a round (default: %(default)s)")
    parser.add_argument(
        "--naive",
        choices=["thread", "loop"],
        default="thread",
        help="where the other server computes: each request on a thread, or on its event loop's (default: %(default)s)",
    )
    parser.add_argument(
        "--transport",
        choices=get_args(Transport),
        default="grpcio",
        help="what carries our RPCs (default: %(default)s)",
    )
    parser.add_argument("--only", nargs="+", choices=[ours.name for ours, _ in WORKLOADS], help="these workloads alone")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every workload on both servers."""
    with contextlib.ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return {
            "rounds": options.rounds,
            "naive": options.naive,
            "transport": options.transport,
            "workloads": {
                ours.name: _compare(ours, naive, work, options)
                for ours, naive in WORKLOADS
                if options.only is None or ours.name in options.only
            },
        }


def _compare(ours: Workload, naive: Workload, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    rounds, scale = options.rounds, options.scale
    bundle = ours.model(work)
    expected = scores_in_process(bundle, ours)
    with (
        peers.ours(bundle, log=work / "ours.log", transport=options.transport) as first,
        peers.naive(bundle, log=work / "naive.log", on=options.naive) as second,
    ):
        pairs = [(first, ours), (second, naive)]
        errors = {server.name: _check(server, workload, bundle, expected, scale=scale) for server, workload in pairs}
        figures: dict[str, list[dict[str, float]]] = {server.name: [] for server, _ in pairs}
        for _ in range(rounds):
            for server, workload in pairs:
                figures[server.name].append(_round(server, workload, workload.call(bundle, expected), scale=scale))
    return {
        "load": asdict(ours) | {"model": bundle.manifest.name, "model_sha256": bundle.manifest_sha256, "scale": scale},
        "largest_error": errors,
        **{name: _medians(measured) for name, measured in figures.items()},
        "ours_to_naive": _ratios(*figures.values()),
        "rounds": figures,
    }


def scores_in_process(bundle: Bundle, workload: Workload) -> Scores:
    """Return what ONNX Runtime gives in this process."""
    rows = models.rows(bundle.manifest.signature, workload.rows, seed=1)
    outputs = Runtime.load(bundle).score(rows, bundle.noise[: bundle.manifest.num_samples])
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


def _check(server: Server, workload: Workload, bundle: Bundle, expected: Scores, *, scale: float) -> float:
    """Compare answers that come while the server is under load, which warms it up too; return the largest error.

    Raises RuntimeError for one past the tolerance, or another verdict.
    """
    error = 0.0
    with ThreadPoolExecutor(1) as background:
        load = background.submit(_round, server, workload, workload.call(bundle, expected), scale=scale, counted=False)
        for scores in workload.answers(server, bundle):
            for name in NUMBERS:
                error = max(error, largest_error(getattr(scores, name), getattr(expected, name)))
            same = (scores.anomalous == expected.anomalous).all() and (scores.status == expected.status).all()
            if error > TOLERANCE or not same:
                raise RuntimeError(f"{server.name}: wrong answers to {workload.name}, off by {error:.2g}")
        load.result()
    return error


def _round(server: Server, workload: Workload, call: Call, *, scale: float, counted: bool = True) -> dict[str, float]:
    """Load a server once; raises RuntimeError unless it counted each request, and as OK."""
    calls = max(1, round(scale * workload.requests / workload.messages))
    requests = calls * workload.messages
    codes, cpu = server.codes(), server.cpu_seconds()
    load = workload.load(server, call, calls=calls)
    cpu = server.cpu_seconds() - cpu
    ended = server.codes() - codes
    if server.metrics and counted and ended != {"OK": requests}:
        raise RuntimeError(f"{server.name}: requests ended with {dict(ended)}; expected {requests} with OK")
    figures = {
        "cpu_us_per_request": round(1e6 * cpu / requests, 1),
        "requests_per_s": load.requests_per_s,
    }
    return figures if load.p50_us is None else figures | {"p50_us": load.p50_us}


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(figures[name] for figures in rounds), 1) for name in rounds[0]}


def _ratios(ours: list[dict[str, float]], naive: list[dict[str, float]]) -> dict[str, float]:
    """Return the median of the rounds' ratios: a round's two loads are neighbours in time."""
    pairs = list(zip(ours, naive, strict=True))
    return {name: round(statistics.median(a[name] / b[name] for a, b in pairs), 3) for name in ours[0]}
