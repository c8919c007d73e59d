"""What the service holds in memory at most: started, under load, and with the largest requests that it takes.

Each load meets a service of its own, `vaeserve serve` with the settings of deploy/base.
"""

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from benchmarks import models, peers
from benchmarks.environment import ROOT
from benchmarks.peers import Server
from benchmarks.serving import ONE_ROW, WORKLOADS, Workload, scores_in_process
from vaeserve.bundle import Bundle
from vaeserve.messages import score_request, spec
from vaeserve.scores import ScoreOptions
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub

SETTINGS = ROOT / "deploy" / "base" / "service.toml"
MESSAGE_BYTES = 16 * 2**20  # limits.message_bytes there
# A little less than the limit, for what a message has beside its tensor.
TENSOR_BYTES = MESSAGE_BYTES - 2**10
AT_ONCE = 8
TIMEOUT_S = 120

Put = Callable[[Server, Bundle], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--work", type=Path, help="a folder that keeps the models for the next time")
    parser.add_argument("--scale", type=float, default=1.0, help="times the requests of a load (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return the largest resident memory under each load, MiB."""
    (img,) = (workload for workload, _ in WORKLOADS if workload.model is models.img)
    (large,) = (workload for workload, _ in WORKLOADS if workload.rows > 1 and workload.model is models.tab)
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        loads: dict[str, tuple[Callable[[Path], Bundle], Put]] = {
            "started": (models.tab, _nothing),
            **{
                f"{load.name}: {load.rows} rows, {load.connections * load.streams} in flight": (
                    load.model,
                    _flooding(load, options.scale),
                )
                for load in (ONE_ROW, large, img)
            },
            "largest requests of numbers, one at a time": (models.tab, _sending(_largest, at_once=1)),
            f"largest requests of numbers, {AT_ONCE} at once": (models.tab, _sending(_largest, at_once=AT_ONCE)),
            f"largest requests of images, {AT_ONCE} at once": (models.img, _sending(_largest, at_once=AT_ONCE)),
            "largest requests of strings, which are refused, one at a time": (
                models.tab,
                _sending(_strings, at_once=1),
            ),
        }
        peaks = {name: _peak_mib(model(work), put, log=work / "log") for name, (model, put) in loads.items()}
    return {"message_bytes": MESSAGE_BYTES, "peak_mib": peaks}


def _peak_mib(bundle: Bundle, put: Put, *, log: Path) -> int:
    with peers.ours(bundle, log=log, settings=SETTINGS) as server:
        put(server, bundle)
        return server.peak_kib() // 2**10


def _nothing(server: Server, bundle: Bundle) -> None:
    """Leave it alone."""


def _flooding(workload: Workload, scale: float) -> Put:
    def put(server: Server, bundle: Bundle) -> None:
        call = workload.call(bundle, scores_in_process(bundle, workload))
        workload.load(server, call, calls=max(1, round(scale * workload.requests)))

    return put


def _sending(request_for: Callable[[Bundle], pb.ScoreRequest], *, at_once: int) -> Put:
    def put(server: Server, bundle: Bundle) -> None:
        request = request_for(bundle)
        options = [("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(server.target, options=options) as channel, ThreadPoolExecutor(at_once) as callers:
            score = VaeServiceStub(channel).Score
            list(callers.map(lambda _: _code(score, request), range(4 * at_once)))

    return put


def _code(score: Any, request: pb.ScoreRequest) -> grpc.StatusCode:
    try:
        score(request, timeout=TIMEOUT_S)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _largest(bundle: Bundle) -> pb.ScoreRequest:
    """Return a request of as many rows as the service takes."""
    signature = bundle.manifest.signature
    rows = models.rows(signature, min(100_000, TENSOR_BYTES // signature.row_bytes), seed=1)
    return score_request(spec(bundle.manifest.name, ""), rows, ScoreOptions())


def _strings(bundle: Bundle) -> pb.ScoreRequest:
    """Return a request of as many strings of one letter as a message has room for: what takes most for its size."""
    letters = pb.Tensor(name="numeric", dtype=pb.STRING, strings=["a"] * (TENSOR_BYTES // 3))
    letters.shape.extend([len(letters.strings), 1])
    return pb.ScoreRequest(model=spec(bundle.manifest.name, ""), inputs=[letters])
