"""What grpc.aio and uvloop alone take of a call and of a message of a stream: the least that a service on them can."""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import peers
from benchmarks.load import Call, flood

# A request for one row of "tab" is about as large.
MESSAGE = bytes(180)
MESSAGES = 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians of (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure 64 calls at once, and one stream."""
    figures: dict[str, list[float]] = {"call_us": [], "message_us": []}
    with tempfile.TemporaryDirectory() as work, peers.echo(log=Path(work) / "echo.log") as server:
        for _ in range(options.rounds):
            cpu = server.cpu_seconds()
            flood(server.target, Call("Score", MESSAGE, MESSAGE), calls=10_000, connections=4, streams=16)
            figures["call_us"].append(1e6 * (server.cpu_seconds() - cpu) / 10_000)
            cpu = server.cpu_seconds()
            flood(server.target, Call("ScoreStream", MESSAGE, MESSAGE, MESSAGES), calls=4, connections=1, streams=1)
            figures["message_us"].append(1e6 * (server.cpu_seconds() - cpu) / 4 / MESSAGES)
    return {name: round(statistics.median(rounds), 1) for name, rounds in figures.items()}
