"""What each transport alone takes of a call and of a message of a stream: the least that a service on it can."""

import argparse
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from benchmarks import peers
from benchmarks.load import Call, flood
from vaeserve_service.config import Transport

# A request for one row of "tab" is about as large.
MESSAGE = bytes(180)
MESSAGES = 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take medians of (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure 64 calls at once, and one stream, by each transport in turns."""
    calls = Call("Score", MESSAGE, MESSAGE), Call("ScoreStream", MESSAGE, MESSAGE, MESSAGES)
    figures: dict[str, dict[str, list[float]]] = {
        name: {"call_us": [], "message_us": []} for name in get_args(Transport)
    }
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        servers = [stack.enter_context(peers.echo(name, log=Path(work) / name)) for name in figures]
        for _ in range(options.rounds):
            for server in servers:
                cpu = server.cpu_seconds()
                flood(server.target, calls[0], calls=10_000, connections=4, streams=16)
                figures[server.name]["call_us"].append(1e6 * (server.cpu_seconds() - cpu) / 10_000)
                cpu = server.cpu_seconds()
                flood(server.target, calls[1], calls=4, connections=1, streams=1)
                figures[server.name]["message_us"].append(1e6 * (server.cpu_seconds() - cpu) / 4 / MESSAGES)
    return {
        transport: {name: round(statistics.median(rounds), 1) for name, rounds in measured.items()}
        for transport, measured in figures.items()
    }
