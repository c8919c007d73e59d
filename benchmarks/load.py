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

SERVICE = "/vaeserve.v1.VaeService"
TIMEOUT_S = 120


@dataclass(frozen=True)
class Call:
    """A call to repeat: its RPC, and `messages` of one request and of its answer, serialized.

    Floats are of fixed size, so answers are too.
    """

    rpc: str
    request: bytes
    answer: bytes
    messages: int = 1


@dataclass(frozen=True)
class Load:
    """What a load measured; p50 is what half of the calls took at most, where each was timed."""

    requests_per_s: float
    p50_us: float | None = None


def flood(target: str, call: Call, *, calls: int, connections: int, streams: int) -> Load:
    """Make `calls`, `connections * streams` of them at once.

    h2load sees no grpc-status, but a call that failed has no message: raises RuntimeError unless every call was
    answered, with as many bytes in all as right answers have.
    """
    with tempfile.NamedTemporaryFile() as body:
        body.write(_framed(call.request) * call.messages)
        body.flush()
        command = [
            *(_h2load(), f"--requests={calls}", f"--clients={connections}", f"--max-concurrent-streams={streams}"),
            *("--threads=1", f"--data={body.name}", "--header=content-type: application/grpc", "--header=te: trailers"),
            f"http://{target}{SERVICE}/{call.rpc}",
        ]
        report = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True).stdout
    succeeded = int(_find(r"(\d+) succeeded", report))
    content = int(_find(r"\((\d+)\) data", report))
    expected = calls * call.messages * len(_framed(call.answer))
    if succeeded != calls or content != expected:
        raise RuntimeError(f"{target}: {succeeded} calls answered with {content} bytes; expected {calls}, {expected}")
    return Load(round(call.messages * float(_find(r"([\d.]+) req/s", report)), 1))


def one_by_one(target: str, call: Call, *, calls: int) -> Load:
    """Make `calls`, each after the last one's answer; raises RuntimeError for an answer of another length."""
    seconds = []
    with grpc.insecure_channel(target) as channel:
        grpc.channel_ready_future(channel).result(TIMEOUT_S)
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"{SERVICE}/{call.rpc}")
        began = time.perf_counter()
        for _ in range(calls):
            sent = time.perf_counter()
            answer = send(call.request, timeout=TIMEOUT_S)
            seconds.append(time.perf_counter() - sent)
            if len(answer) != len(call.answer):
                raise RuntimeError(f"{target}: answered {len(answer)} bytes; expected {len(call.answer)}")
        took = time.perf_counter() - began
    return Load(round(calls / took, 1), round(1e6 * statistics.median(seconds), 1))


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
