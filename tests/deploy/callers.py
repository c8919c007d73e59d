"""Callers that never try again, so that every call that a service loses is seen: `callers.py TARGET MODEL`.

They call until SIGTERM, end what they have begun, and print how many calls had which status code, in JSON.
"""

import asyncio
import json
import signal
import sys
from collections import Counter
from typing import Any

import grpc.aio
import numpy as np

from vaeserve.tensors import to_tensor
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub

# So many, and so much more work for who answers than for who calls, that each of three servers always has some.
CALLERS = 12
ROWS, NUM_SAMPLES = 300, 64
_OPTIONS = (
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # By default a name is resolved every 30 s at most.
    ("grpc.dns_min_time_between_resolutions_ms", 500),
)


async def call(stub: Any, request: pb.ScoreRequest) -> str:
    """Make a call and return the name of its status code."""
    try:
        await stub.Score(request, timeout=60)
    except grpc.aio.AioRpcError as error:
        print(error.details(), file=sys.stderr)
        return error.code().name
    return "OK"


async def main(target: str, model: str) -> None:
    """Call until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    rows = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    request = pb.ScoreRequest(model=pb.ModelSpec(name=model), inputs=[to_tensor(rows)], num_samples=NUM_SAMPLES)
    codes: Counter[str] = Counter()
    async with grpc.aio.insecure_channel(target, options=_OPTIONS) as channel:
        stub = VaeServiceStub(channel)

        async def keep_calling() -> None:
            while not stop.is_set():
                codes[await call(stub, request)] += 1

        await asyncio.gather(*(keep_calling() for _ in range(CALLERS)))
    print(json.dumps(codes))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
