"""Running graphs."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from vaeserve.errors import BundleError, ConfigError, InternalError
from vaeserve_service.runtime import Graph, Runtime


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    """ONNX Runtime's usage reports are turned off in the environment by the time it is imported, whatever was set."""
    script = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "0"
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ["ORT_DISABLE_TELEMETRY"])
sys.meta_path.insert(0, Watch())
import vaeserve_service.runtime
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["1"]


def test_a_session_has_one_thread(models: Any) -> None:
    """More intra-op threads would split a sum in other places, and so change its bits."""
    graph = Graph(models.bundles["table7"].graph("scorer"), name="scorer")
    options = graph._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)


def test_outputs_can_be_chosen(models: Any, rows_of: Any) -> None:
    """Only the outputs that are asked for come back, with the same bits."""
    bundle = models.bundles["table7"]
    graph = Graph(bundle.graph("scorer"), name="scorer")
    rows = {"numeric": rows_of("table7", 10)}
    everything = graph.run_rows(rows, chunk=3, noise=bundle.noise[:8])
    elbo = graph.run_rows(rows, chunk=10, outputs=("elbo",), noise=bundle.noise[:8])
    assert list(elbo) == ["elbo"]
    assert elbo["elbo"].tobytes() == everything["elbo"].tobytes()


@pytest.mark.parametrize(("samples", "sizes"), [(2, [256, 256, 88]), (8, [256, 256, 88]), (16, [128] * 4 + [88])])
def test_a_call_has_no_more_rows_than_caches_hold(
    models: Any, rows_of: Any, monkeypatch: pytest.MonkeyPatch, samples: int, sizes: list[int]
) -> None:
    """A large input is scored in calls of 256 rows at most, however few the samples, and of fewer for many samples."""
    bundle, called, run = models.bundles["table7"], [], Graph.run

    def counted(graph: Graph, feeds: Any, outputs: Any) -> Any:
        called.append(len(feeds["numeric"]))
        return run(graph, feeds, outputs)

    runtime = Runtime.load(bundle)
    monkeypatch.setattr(Graph, "run", counted)
    scores = runtime.score({"numeric": rows_of("table7", 600)}, bundle.noise[:samples])
    assert called == sizes
    assert len(scores["elbo"]) == 600


def test_what_is_no_graph_is_refused(models: Any) -> None:
    """Bytes that are no graph, and a device that isn't there, are refused by name."""
    with pytest.raises(BundleError, match=r"scorer\.onnx: not an ONNX graph"):
        Graph(b"no graph", name="scorer")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ConfigError, match="device cuda: ONNX Runtime has .*install onnxruntime-gpu"):
            Graph(models.bundles["table7"].graph("scorer"), name="scorer", device="cuda")


def test_a_failing_call_is_an_error_of_ours(models: Any) -> None:
    """What ONNX Runtime refuses at run time is an InternalError with the graph's name, not a stray exception."""
    graph = Graph(models.bundles["table7"].graph("decoder"), name="decoder")
    with pytest.raises(InternalError, match="decoder: "):
        graph.run_rows({"z": np.zeros((1, 99), np.float32)}, chunk=10)
