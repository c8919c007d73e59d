"""How a service stops while something would hold it."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

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
