"""How a service stops while something would hold it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import onnx
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from onnx import TensorProto, helper

from tests.service.conftest import NAME, Shelf
from tests.service.held import serving
from vaeserve.tensors import to_tensor
from vaeserve.v1 import vae_pb2 as pb
from vaeserve.v1.vae_pb2_grpc import VaeServiceStub

# Seconds that a test has for what would otherwise take for ever.
STOP_S = 60

# What a load may not come back from: a volume that hangs, and ONNX Runtime's native code.
HANGS, BUILDS = "threading.Event().wait()", "InferenceSession(sys.argv[3] + '/fraud/1/scorer.onnx')"

# `vaeserve serve`, whose loads say that they began, and don't end.
SERVE = """
import sys, threading
from onnxruntime import InferenceSession
from vaeserve.cli import main
from vaeserve_service.loading import Loader

def hang(*_):
    print("loading", flush=True)
    while True:
        LOAD

Loader.load = hang
main()
"""


@contextmanager
def hanging(folder: Path, *options: str, load: str = HANGS) -> Iterator["subprocess.Popen[str]"]:
    """Start a service of the repository `folder/bundles`, whose loads hang; it logs to `folder/log`."""
    (folder / "bundles").mkdir(exist_ok=True)
    command = [
        *(sys.executable, "-c", SERVE.replace("LOAD", load), "serve", "--repository", str(folder / "bundles")),
        *("--host", "127.0.0.1", "--grpc-port", "0", "--http-port", "0", "--set", "drain.grace_s=0", *options),
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def add(folder: Path, name: str) -> None:
    """Let what looks like a model's first version appear, with a graph that takes a while to build."""
    version = folder / "bundles" / name / "1"
    version.mkdir(parents=True)
    names = [f"x{number}" for number in range(1000)]
    nodes = [helper.make_node("Sin", [before], [after]) for before, after in pairwise(names)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in (names[0], names[-1])]
    graph = helper.make_graph(nodes, "sines", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), version / "scorer.onnx")
    (version / "manifest.json").touch()


def loads(process: "subprocess.Popen[str]") -> bool:
    """Wait until a load has begun."""
    assert process.stdout
    return process.stdout.readline() == "loading\n"


def events(folder: Path) -> list[str]:
    """Return what a service logged."""
    return [json.loads(line)["event"] for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize("load", [HANGS, BUILDS])
def test_a_stop_while_the_first_models_load_is_one_at_once(tmp_path: Path, load: str) -> None:
    """On SIGTERM a service whose first load doesn't end exits with 0, without having served."""
    add(tmp_path, "fraud")
    with hanging(tmp_path, load=load) as process:
        assert loads(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
    assert events(tmp_path) == ["stopped before it served"]


# The end of a service's process, with a runner that is still in ONNX Runtime.
COMPUTING = """
import asyncio, sys
import numpy as np
import onnxruntime as ort
from vaeserve_service.batcher import Batcher
from vaeserve_service.daemon import end_if_one_works
from vaeserve_service.runners import Runners

session = ort.InferenceSession(sys.argv[1])

def compute(_, inputs):
    while True:
        session.run(None, {"x0": np.zeros(1, np.float32)})

async def serve():
    with Runners(1) as runners:
        batcher = Batcher(compute, runners=runners, max_rows=1, max_delay_s=0, queue_rows=1, queue_bytes=100)
        batcher.submit("", {"x": np.zeros(1)})
        await asyncio.sleep(0.1)

asyncio.run(serve())
end_if_one_works()
"""


def test_a_call_that_hangs_does_not_hold_the_stop(tmp_path: Path) -> None:
    """A process whose runner never comes back from its call ends with 0, and isn't aborted as Python ends."""
    add(tmp_path, "fraud")
    command = [sys.executable, "-c", COMPUTING, str(tmp_path / "bundles" / "fraud" / "1" / "scorer.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STOP_S, check=False)
    assert (done.returncode, "left computing" in done.stdout + done.stderr) == (0, True)


def test_a_load_that_hangs_does_not_hold_the_stop(tmp_path: Path) -> None:
    """On SIGTERM a service that serves drains and exits with 0, though a later load hangs."""
    options = ("--set", 'repository.models=["fraud"]', "--set", "repository.poll_s=0.05")
    with hanging(tmp_path, *options) as process:
        while '"serving"' not in (tmp_path / "log").read_text():
            assert process.poll() is None
        add(tmp_path, "fraud")
        assert loads(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_S) == 0
    assert events(tmp_path)[-2:] == ["draining", "stopped"]


async def test_open_streams_end_with_ok_long_before_the_grace(shelf: Shelf) -> None:
    """In a drain a stream has its requests answered, also those under way, and one that nobody uses then ends."""
    shelf.add(1)
    request = pb.ScoreRequest(model=pb.ModelSpec(name=NAME), inputs=[to_tensor(np.zeros((1, 3), np.float32))])
    async with (
        serving(shelf.path, NAME, drain={"grace_s": 3600}) as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        stub: Any = VaeServiceStub(channel)
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub
        idle, busy, reflects = stub.ScoreStream(), stub.ScoreStream(), reflection(channel).ServerReflectionInfo()
        await reflects.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await reflects.read()).HasField("list_services_response")
        service.scorer.let(1)
        await idle.write(request)
        assert len((await idle.read()).score) == 1
        await busy.write(request)
        await service.until(lambda: len(service.scorer.runs) == 2)
        service.stop.set()
        for stream in (idle, reflects):
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK
        assert not service.ended.done()
        service.scorer.let()
        assert len((await busy.read()).score) == 1
        assert await busy.read() is grpc.aio.EOF
        assert await busy.code() is grpc.StatusCode.OK
        await service.ended
