"""The client against others: the processor time of a row, client and server together, at 64 callers of one row each.

Every client makes its calls from a process of its own, in turns, on one server, `vaeserve serve` as it is by default.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import models, peers
from benchmarks.callers import CLIENTS, MODEL, THREADS, WARM_UP
from benchmarks.environment import ROOT
from benchmarks.peers import Server
from vaeserve.bundle import Bundle
from vaeserve_service.runtime import Runtime

NAMES = (*CLIENTS, THREADS)
OURS = next(iter(CLIENTS))
CALLS = 400
TIMEOUT_S = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--work", type=Path, help="a folder that keeps the model for the next time")
    parser.add_argument("--callers", type=int, default=64, help="calls at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians of (default: %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the calls of a round (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these clients alone")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure each client."""
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        bundle = models.tab(work)
        file = Path(folder) / "rows.npz"
        _write_rows(bundle, file, options.callers)
        calls = max(1, round(CALLS * options.scale))
        figures: dict[str, list[dict[str, float]]] = {name: [] for name in options.only}
        with peers.ours(bundle, log=Path(folder) / "log") as server:
            for _ in range(options.rounds):
                for name, rounds in figures.items():
                    rounds.append(_round(name, server, file, calls=calls, callers=options.callers))
    return {
        "load": {"model": MODEL, "callers": options.callers, "calls_of_each": calls},
        "cpu_us_per_row": {name: _medians(rounds) for name, rounds in figures.items()},
        f"{OURS}_to": {name: _ratio(figures[OURS], rounds) for name, rounds in figures.items()}
        if OURS in figures
        else {},
        "rounds": figures,
    }


def _write_rows(bundle: Bundle, file: Path, callers: int) -> None:
    """Write a row for each caller, and the score that ONNX Runtime gives it in this process."""
    rows = models.rows(bundle.manifest.signature, callers, seed=1)
    outputs = Runtime.load(bundle).score(rows, bundle.noise[: bundle.manifest.num_samples])
    np.savez(file, allow_pickle=False, rows=next(iter(rows.values())), scores=-outputs["elbo"])


def _round(name: str, server: Server, file: Path, *, calls: int, callers: int) -> dict[str, float]:
    """Load the server once; raises RuntimeError for wrong scores. Its processor time includes the few that warm up."""
    command = [sys.executable, "-m", "benchmarks.callers", name, server.target, str(file), "--calls", str(calls)]
    before = server.cpu_seconds()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    served = server.cpu_seconds() - before
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()}")
    client = 1e6 * json.loads(done.stdout)["cpu_s"] / (calls * callers)
    service = 1e6 * served / ((calls + WARM_UP) * callers)
    return {"client": round(client, 1), "server": round(service, 1), "both": round(client + service, 1)}


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {part: round(statistics.median(figures[part] for figures in rounds), 1) for part in rounds[0]}


def _ratio(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> float:
    """Return the median of the rounds' ratios: a round's loads are neighbours in time."""
    return round(statistics.median(a["both"] / b["both"] for a, b in zip(ours, theirs, strict=True)), 3)
