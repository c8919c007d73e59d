"""Callers of one row each, many at once, of one of the clients that are compared; a process of its own.

`python -m benchmarks.callers CLIENT TARGET ROWS.npz --calls N` prints the processor time that its calls took, as JSON.
tritonclient brings a copy of the Open Inference Protocol's messages that no process can hold beside another's.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODEL = "tab"
INPUT = "numeric"
WARM_UP = 10
# Relative, or absolute below 1.
TOLERANCE = 1e-4

# Scores a row [1, features].
Score = Callable[[NDArray[np.float32]], Awaitable[float]]


async def vaeserve(target: str, stack: AsyncExitStack) -> Score:
    """Return a call of `vaeserve.AsyncClient`, as it is by default."""
    from vaeserve import AsyncClient

    client = await stack.enter_async_context(AsyncClient(target))

    async def score(row: NDArray[np.float32]) -> float:
        return float((await client.score(MODEL, row)).score[0])

    return score


async def uncoalesced(target: str, stack: AsyncExitStack) -> Score:
    """Return a call of `vaeserve.AsyncClient` that joins none."""
    from vaeserve import AsyncClient

    client = await stack.enter_async_context(AsyncClient(target, coalesce_ms=0))

    async def score(row: NDArray[np.float32]) -> float:
        return float((await client.score(MODEL, row)).score[0])

    return score


async def stub(target: str, stack: AsyncExitStack) -> Score:
    """Return a call of the stub that grpc.aio gives, with the least that must be done about it."""
    import grpc

    from vaeserve.v1 import vae_pb2 as pb
    from vaeserve.v1.vae_pb2_grpc import VaeServiceStub

    channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
    call: Any = VaeServiceStub(channel).Score
    model = pb.ModelSpec(name=MODEL)

    async def score(row: NDArray[np.float32]) -> float:
        tensor = pb.Tensor(dtype=pb.FLOAT32, shape=row.shape, data=row.tobytes())
        response = await call(pb.ScoreRequest(model=model, inputs=[tensor]), timeout=30)
        return float(response.score[0])

    return score


async def tritonclient(target: str, stack: AsyncExitStack) -> Score:
    """Return a call of `tritonclient.grpc.aio`, as its documentation has it."""
    from tritonclient.grpc import InferInput, InferRequestedOutput
    from tritonclient.grpc.aio import InferenceServerClient

    client = await stack.enter_async_context(InferenceServerClient(target))
    wanted = [InferRequestedOutput("score")]

    async def score(row: NDArray[np.float32]) -> float:
        rows = InferInput(INPUT, row.shape, "FP32")
        rows.set_data_from_numpy(row)
        result = await client.infer(MODEL, [rows], outputs=wanted)
        return float(result.as_numpy("score").flat[0])

    return score


CLIENTS = {client.__name__: client for client in (vaeserve, uncoalesced, stub, tritonclient)}
THREADS = "threads"


async def by_tasks(name: str, target: str, rows: NDArray[np.float32], calls: int) -> tuple[float, list[float]]:
    """Have a task for each row make so many calls; return the processor seconds, and each row's last score."""
    async with AsyncExitStack() as stack:
        score = await CLIENTS[name](target, stack)

        async def call(row: NDArray[np.float32], times: int) -> float:
            for _ in range(times):
                last = await score(row)
            return last

        await asyncio.gather(*(call(row[None], WARM_UP) for row in rows))
        began = time.process_time()
        scores = await asyncio.gather(*(call(row[None], calls) for row in rows))
        return time.process_time() - began, list(scores)


def by_threads(target: str, rows: NDArray[np.float32], calls: int) -> tuple[float, list[float]]:
    """Have a thread for each row make so many calls of `vaeserve.Client`; return as `by_tasks` does."""
    from vaeserve import Client

    with Client(target) as client, ThreadPoolExecutor(len(rows)) as pool:

        def call(row: NDArray[np.float32], times: int) -> float:
            for _ in range(times):
                last = client.score(MODEL, row)
            return float(last.score[0])

        list(pool.map(lambda row: call(row[None], WARM_UP), rows))
        began = time.process_time()
        scores = list(pool.map(lambda row: call(row[None], calls), rows))
        return time.process_time() - began, scores


def main() -> None:
    """Make the calls; exit with 1 for a wrong score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("client", choices=[*CLIENTS, THREADS])
    parser.add_argument("target")
    parser.add_argument("file", help="an .npz file of rows, and of the scores expected")
    parser.add_argument("--calls", type=int, required=True, help="of each caller, of which there is one a row")
    options = parser.parse_args()
    with np.load(options.file) as file:
        rows, expected = file["rows"], file["scores"]
    if options.client == THREADS:
        seconds, scores = by_threads(options.target, rows, options.calls)
    else:
        seconds, scores = asyncio.run(by_tasks(options.client, options.target, rows, options.calls))
    error = float((np.abs(scores - expected) / np.maximum(1, np.abs(expected))).max())
    if not error <= TOLERANCE:
        sys.exit(f"{options.client}: wrong scores, off by {error:.2g}")
    print(json.dumps({"cpu_s": seconds, "largest_error": error}))


if __name__ == "__main__":
    main()
