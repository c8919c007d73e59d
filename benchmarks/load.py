"""Load on a server: h2load, a generator in C, for many calls in flight; a plain stub for one after another."""

import re
import shutil
import statistics
import struct
import subprocess
import tempfile
import time
from dataclasses import dataclass

import grpc

METHOD = "/vaeserve.v1.VaeService/Score"
TIMEOUT_S = 120


@dataclass(frozen=True)
class Call:
    """A call to repeat: the request and the answer, serialized. Floats are of fixed size, so answers are too."""

    request: bytes
    answer: bytes


@dataclass(frozen=True)
class Load:
    """What a load measured; p50 is what half of the calls took at most, where each was timed."""

    requests_per_s: float
    p50_us: float | None = None


def flood(target: str, call: Call, *, requests: int, connections: int, streams: int) -> Load:
    """Send `requests` calls, `connections * streams` of them in flight.

    h2load sees no grpc-status, but a call that failed has no message: raises RuntimeError unless every call was
    answered, with as many bytes in all as right answers have.
    """
    with tempfile.NamedTemporaryFile() as body:
        body.write(_framed(call.request))
        body.flush()
        command = [
            *(_h2load(), f"--requests={requests}", f"--clients={connections}", f"--max-concurrent-streams={streams}"),
            *("--threads=1", f"--data={body.name}", "--header=content-type: application/grpc", "--header=te: trailers"),
            f"http://{target}{METHOD}",
        ]
        report = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    succeeded = int(_find(r"(\d+) succeeded", report))
    content = int(_find(r"\((\d+)\) data", report))
    expected = requests * len(_framed(call.answer))
    if succeeded != requests or content != expected:
        raise RuntimeError(
            f"{target}: {succeeded} calls answered with {content} bytes; expected {requests} with {expected}"
        )
    return Load(float(_find(r"([\d.]+) req/s", report)))


def one_by_one(target: str, call: Call, *, requests: int) -> Load:
    """Send `requests` calls, each after the last one's answer; raises RuntimeError for an answer of another length."""
    seconds = []
    with grpc.insecure_channel(target) as channel:
        grpc.channel_ready_future(channel).result(TIMEOUT_S)
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        began = time.perf_counter()
        for _ in range(requests):
            sent = time.perf_counter()
            answer = send(call.request, timeout=TIMEOUT_S)
            seconds.append(time.perf_counter() - sent)
            if len(answer) != len(call.answer):
                raise RuntimeError(f"{target}: answered {len(answer)} bytes; expected {len(call.answer)}")
        took = time.perf_counter() - began
    return Load(round(requests / took, 1), round(1e6 * statistics.median(seconds), 1))


def _h2load() -> str:
    path = shutil.which("h2load")
    if path is None:
        raise RuntimeError("h2load: not found; expected Debian's nghttp2-client, or what has it elsewhere")
    return path


def _framed(message: bytes) -> bytes:
    """Return a message as gRPC sends it: a byte that says uncompressed, four for its length, then itself."""
    return struct.pack(">BI", 0, len(message)) + message


def _find(pattern: str, report: str) -> str:
    found = re.search(pattern, report)
    if found is None:
        raise RuntimeError(f"h2load said no {pattern!r}: {report}")
    return found[1]
