"""`vaeserve verify`: what holds passes, and whatever is broken is found by the check that is there for it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.conftest import KINDS
from vaeserve.bundle import Bundle
from vaeserve.errors import ConfigError, RefusedError
from vaeserve.manifest import entries
from vaeserve.scores import RowStatus
from vaeserve_export import promises, trials
from vaeserve_export.arrays import npy, npz
from vaeserve_export.operators import count_operators
from vaeserve_export.structure import checked
from vaeserve_export.verify import CHECKS, verify
from vaeserve_service.runtime import GRAPHS, Runtime, provider_of

Arrays = dict[str, NDArray[Any]]


class Broken:
    """A bundle's content, that a test breaks and writes with hashes and operator counts that are right again."""

    def __init__(self, bundle: Bundle) -> None:
        self.files = {name: bundle.read(name) for name in bundle.manifest.files}
        self.manifest = json.loads(bundle.manifest_json)
        self.scorer = onnx.load_from_string(bundle.graph("scorer"))
        self.golden = dict(bundle.golden)
        self.arrays = {"noise.npy": bundle.noise, "calibration.npy": np.stack([*bundle.calibration.scores.values()])}

    def write(self, folder: Path, *, count: bool = True) -> Path:
        """Write it, and return its path."""
        folder.mkdir()
        self.files["scorer.onnx"] = self.scorer.SerializeToString()
        self.files["golden.npz"] = npz(self.golden)
        self.files |= {name: npy(array) for name, array in self.arrays.items()}
        if count:
            self.manifest["operators"]["scorer"] = count_operators(self.scorer)
        self.manifest["files"] = {name: entry.model_dump() for name, entry in entries(self.files).items()}
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        (folder / "manifest.json").write_text(json.dumps(self.manifest))
        return folder

    def reroute(self, output: str, *nodes: onnx.NodeProto, **constants: Any) -> None:
        """Compute an output of the scorer by further `nodes`, from what it was: `before`."""
        for node in self.scorer.graph.node:
            for names in (node.input, node.output):
                names[:] = ["before" if name == output else name for name in names]
        self.scorer.graph.node.extend(nodes)
        self.scorer.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()
        )

    def keep_golden(self, rows: slice) -> None:
        """Keep some of the golden rows alone."""
        self.golden = {name: array[rows] for name, array in self.golden.items()}


def failed(path: Path) -> tuple[str, str]:
    """Return the name of the check that a bundle doesn't pass, and what it says."""
    verification = verify(path)
    assert not verification.passed
    assert all(check.passed for check in verification.checks[:-1])
    return verification.checks[-1].name, verification.checks[-1].detail


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_passes(models: Any, kind: str) -> None:
    """A bundle of each kind passes every check, and each is said as it is done."""
    said: list[str] = []
    verification = verify(models.bundles[kind].path, say=lambda check: said.append(check.name))
    assert verification.passed, verification.checks[-1]
    assert said == [check.name for check in verification.checks] == list(CHECKS)


def unsupported_rate(broken: Broken) -> None:
    """Let the manifest promise a rate that its calibration can't support."""
    broken.manifest["false_positive_rate"] = 0.001


def softplus(broken: Broken) -> None:
    """Plant an operator whose bits depend on the batch."""
    for node in broken.scorer.graph.node:
        node.op_type = "Softplus" if node.op_type == "Sigmoid" else node.op_type


def feature_sum(broken: Broken) -> None:
    """Plant a sum over an axis."""
    broken.reroute(
        "kl",
        helper.make_node("Unsqueeze", ["before", "axes"], ["wide"]),
        helper.make_node("ReduceSum", ["wide", "axes"], ["kl"], keepdims=0),
        axes=np.array([1]),
    )


def drawn_noise(broken: Broken) -> None:
    """Plant noise that no seed fixes."""
    broken.reroute(
        "kl",
        helper.make_node("RandomNormalLike", ["before"], ["drawn"], scale=1e-6),
        helper.make_node("Add", ["before", "drawn"], ["kl"]),
    )


def dangling(broken: Broken) -> None:
    """Take away the node that others wait for."""
    del broken.scorer.graph.node[3]


def other_opset(broken: Broken) -> None:
    """Let the manifest speak of another opset."""
    broken.manifest["opset"] = 20


def output_of_another_name(broken: Broken) -> None:
    """Give an output another name."""
    broken.reroute("kl", helper.make_node("Identity", ["before"], ["divergence"]))
    next(value for value in broken.scorer.graph.output if value.name == "kl").name = "divergence"


def shifted_calibration(broken: Broken) -> None:
    """Shift the calibration's scores."""
    broken.arrays["calibration.npy"] = broken.arrays["calibration.npy"] + np.float32(0.5)


def unsorted_calibration(broken: Broken) -> None:
    """Turn the calibration's scores about."""
    broken.arrays["calibration.npy"] = broken.arrays["calibration.npy"][:, ::-1].copy()


def wide_noise(broken: Broken) -> None:
    """Draw the noise twice as wide."""
    broken.arrays["noise.npy"] = broken.arrays["noise.npy"] * np.float32(2)


def shifted_noise(broken: Broken) -> None:
    """Draw the noise about another mean."""
    broken.arrays["noise.npy"] = broken.arrays["noise.npy"] + np.float32(0.4)


def other_golden_outputs(broken: Broken) -> None:
    """Let PyTorch have given something else."""
    broken.golden["decoder/loc"] = broken.golden["decoder/loc"] + 0.01


def no_golden_row_scored(broken: Broken) -> None:
    """Keep the golden row alone that lacks values."""
    broken.keep_golden(slice(-1, None))


def batch_dependent(broken: Broken) -> None:
    """Add a little of what the batch has most of, by operators that are allowed."""
    broken.keep_golden(slice(-1))
    broken.reroute(
        "elbo",
        helper.make_node("ReduceMax", ["before", "axes"], ["most"], keepdims=1),
        helper.make_node("Mul", ["most", "little"], ["more"]),
        helper.make_node("Add", ["before", "more"], ["elbo"]),
        axes=np.array([0]),
        little=np.float32(1e-6).reshape(1),
    )


def loose_kl(broken: Broken) -> None:
    """Let the divergence be off by a little, in PyTorch's outputs too."""
    broken.golden["scorer/kl"] = broken.golden["scorer/kl"] + 0.01
    broken.reroute("kl", helper.make_node("Add", ["before", "little"], ["kl"]), little=np.float32(0.01))


def overflowing(broken: Broken) -> None:
    """Add nothing to rows of usual size, and what isn't a number to huge ones."""
    broken.reroute(
        "kl",
        helper.make_node("ReduceMax", ["numeric", "axes"], ["most"], keepdims=0),
        helper.make_node("Exp", ["most"], ["huge"]),
        helper.make_node("Mul", ["huge", "nothing"], ["added"]),
        helper.make_node("Add", ["before", "added"], ["kl"]),
        axes=np.array([1]),
        nothing=np.float32(0),
    )


def no_status(broken: Broken) -> None:
    """Call every row OK, in PyTorch's outputs too."""
    broken.golden["scorer/status"] = broken.golden["scorer/status"] * 0
    broken.reroute("status", helper.make_node("Mul", ["before", "never"], ["status"]), never=np.int32(0))


def contagious(broken: Broken) -> None:
    """Let a row without numbers take away those of its neighbours."""
    broken.keep_golden(slice(-1))
    broken.reroute(
        "kl",
        helper.make_node("ReduceMax", ["before", "axes"], ["most"], keepdims=1),
        helper.make_node("Mul", ["most", "nothing"], ["added"]),
        helper.make_node("Add", ["before", "added"], ["kl"]),
        axes=np.array([0]),
        nothing=np.float32(0),
    )


def nudging(broken: Broken) -> None:
    """Let a row that can't be scored change its neighbours' numbers a little."""
    broken.keep_golden(slice(-1))
    broken.reroute(
        "kl",
        helper.make_node("Cast", ["status"], ["unscorable"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["unscorable", "axes"], ["most"], keepdims=1),
        helper.make_node("Mul", ["most", "little"], ["added"]),
        helper.make_node("Add", ["before", "added"], ["kl"]),
        axes=np.array([0]),
        little=np.float32(1e-6),
    )


@pytest.mark.parametrize(
    ("spoil", "check", "message"),
    [
        (unsupported_rate, "manifest", "false_positive_rate: 0.001; 120 calibration rows support 0.00826 or more"),
        (softplus, "graphs", "scorer.onnx: operator Softplus"),
        (feature_sum, "graphs", "scorer.onnx: operator ReduceSum"),
        (drawn_noise, "graphs", "scorer.onnx: operator RandomNormalLike"),
        (dangling, "graphs", "scorer.onnx: "),
        (other_opset, "graphs", "encoder.onnx: opset 21; the manifest says 20"),
        (output_of_another_name, "graphs", "scorer.onnx: output kl is missing; expected FLOAT32 of shape [-1]"),
        (shifted_calibration, "calibration", "calibration.npy: the elbo scores' quantile 0 is"),
        (unsorted_calibration, "calibration", "calibration.npy: scores that are out of order; expected ascending ones"),
        (wide_noise, "noise", "noise.npy: variance"),
        (shifted_noise, "noise", "noise.npy: mean 0.4"),
        (other_golden_outputs, "golden rows", "decoder.onnx: loc of the golden rows is off by 0.01"),
        (no_golden_row_scored, "golden rows", "none of its 1 rows can be scored"),
        (batch_dependent, "same bits in any batch", "scorer/elbo: other bits of row"),
        (loose_kl, "parts add up", "scorer/elbo: "),
        (overflowing, "finite scores", "scorer/kl: nan for a finite row; expected a number"),
        (no_status, "unscorable rows", "scorer/status: 0 for row 0; expected UNSCORABLE_MISSING"),
        (contagious, "unscorable rows", "scorer/kl: [nan] where the status is 0; expected finite numbers"),
        (nudging, "unscorable rows", "scorer/kl: changed by an unscorable row in the batch; expected the same"),
    ],
)
def test_what_is_broken_is_found_by_its_check(
    models: Any, tmp_path: Path, spoil: Callable[[Broken], None], check: str, message: str
) -> None:
    """Under right hashes, each thing that is broken on purpose is found by one check, and said."""
    broken = Broken(models.bundles["table7"])
    spoil(broken)
    name, detail = failed(broken.write(tmp_path / "1"))
    assert name == check, detail
    assert message in detail


def test_wrong_operator_counts_are_found(models: Any, tmp_path: Path) -> None:
    """The manifest's operators are counted again."""
    broken = Broken(models.bundles["table7"])
    broken.manifest["operators"]["scorer"]["Gemm"] += 1
    name, detail = failed(broken.write(tmp_path / "1", count=False))
    said = broken.manifest["operators"]["scorer"]["Gemm"]
    assert (name, detail) == ("graphs", f"scorer.onnx: {said - 1} x Gemm; the manifest says {said}")


def test_a_changed_file_is_found(models: Any, tmp_path: Path) -> None:
    """A file whose bytes aren't those of its hash fails before anything runs it."""
    path = Broken(models.bundles["table7"]).write(tmp_path / "1")
    content = bytearray((path / "scorer.onnx").read_bytes())
    content[-1] ^= 1
    (path / "scorer.onnx").write_bytes(content)
    name, detail = failed(path)
    assert name == "files"
    assert "scorer.onnx: SHA-256" in detail


def test_a_graph_that_takes_what_nobody_makes_is_refused(models: Any) -> None:
    """A node whose input has no node to make it is refused, before shapes are inferred through it."""
    model = onnx.load_from_string(models.bundles["mixed"].graph("decoder"))
    next(node for node in model.graph.node if node.op_type == "LabelEncoder").input[0] = "nobody's"
    with pytest.raises(RefusedError, match=r"decoder\.onnx: .*nobody's"):
        checked(model, "decoder")


def test_a_name_that_is_no_text_is_refused(models: Any, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 within a graph are the graph's fault."""
    broken = Broken(models.bundles["table7"])
    broken.files["decoder.onnx"] = broken.files["decoder.onnx"].replace(b"numeric", b"num\xe5ric")
    name, detail = failed(broken.write(tmp_path / "1"))
    assert name == "graphs"
    assert detail.startswith("decoder.onnx: ")


def planted(bundle: Bundle, spoil: Callable[[Broken], None]) -> tuple[Runtime, Arrays]:
    """Return the runtime of a bundle with a broken scorer that no check of operators saw, and rows to try it on."""
    broken = Broken(bundle)
    spoil(broken)
    graphs = {name: bundle.graph(name) for name in GRAPHS} | {"scorer": broken.scorer.SerializeToString()}
    return Runtime(graphs), trials.trial_rows(bundle.golden, bundle.manifest.signature)


def test_a_batch_dependent_operator_past_the_list_is_noticed(models: Any) -> None:
    """Softplus over 7 columns, were it allowed, would be noticed by a row's bits alone and in a batch."""
    bundle = models.bundles["table7"]
    runtime, rows = planted(bundle, softplus)
    with pytest.raises(RefusedError, match=r"scorer/\w+: other bits of .* at 3 samples"):
        promises.refuse_batch_dependent(runtime, rows, bundle.noise[:3])


def test_unseeded_noise_past_the_list_is_noticed(models: Any) -> None:
    """Noise drawn in a graph, were it allowed, would be noticed by running it twice."""
    bundle = models.bundles["table7"]
    runtime, rows = planted(bundle, drawn_noise)
    with pytest.raises(RefusedError, match="scorer/kl: other bits when run again"):
        promises.refuse_unsteady(runtime, runtime, rows, bundle.noise[:3])


def test_other_bits_of_other_sessions_and_threads_are_noticed(models: Any) -> None:
    """Sessions that differ in their last bits are told apart, and so are threads that share one that draws noise."""
    bundle = models.bundles["table7"]
    whole, rows = planted(bundle, lambda _: None)
    nudged, _ = planted(
        bundle, lambda b: b.reroute("kl", helper.make_node("Mul", ["before", "a"], ["kl"]), a=np.float32(1 + 1e-6))
    )
    with pytest.raises(RefusedError, match="scorer/kl: other bits when run in other sessions"):
        promises.refuse_unsteady(whole, nudged, rows, bundle.noise[:3])
    drawing, _ = planted(bundle, drawn_noise)
    with pytest.raises(RefusedError, match="scorer/kl: other bits among 4 threads"):
        promises.refuse_thread_dependent(drawing, rows, bundle.noise[:3])


@pytest.mark.parametrize("kind", KINDS)
def test_trial_rows_are_rows_that_the_model_takes(models: Any, kind: str) -> None:
    """The rows to try a model on are all OK, no two alike, and spoiled ones have each status that a table can have."""
    bundle = models.bundles[kind]
    signature = bundle.manifest.signature
    rows = trials.trial_rows(bundle.golden, signature)
    signature.check({name: array for name, array in rows.items() if name != promises.LATENTS})
    spoiled, statuses = trials.spoiled_rows(rows, signature)
    assert promises.count(rows) == promises.count(spoiled) == len(statuses) == trials.ROWS
    outputs = promises.outputs_of(Runtime.load(bundle), spoiled, bundle.noise[:1])
    found = set(outputs["scorer/status"].tolist())
    names = {spec.name for spec in signature.inputs}
    assert (RowStatus.UNSCORABLE_MISSING in found) == bool(signature.columns)
    assert (RowStatus.UNSCORABLE_NOT_FINITE in found) == ("numeric" in names)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `vaeserve verify` with these arguments."""
    command = [sys.executable, "-m", "vaeserve", "verify", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_the_command_ticks_off_what_holds(models: Any, tmp_path: Path) -> None:
    """Each check is ticked; the first that fails is an error, exit code 1."""
    passed = run(models.bundles["table7"].path)
    assert passed.returncode == 0, passed.stderr
    assert [line[:2] for line in passed.stdout.splitlines()] == ["✓ "] * len(CHECKS)
    broken = Broken(models.bundles["table7"])
    wide_noise(broken)
    failing = run(broken.write(tmp_path / "1"))
    assert failing.returncode == 1
    assert [line[:2] for line in failing.stdout.splitlines()] == ["✓ "] * 4 + ["✗ "]
    assert "noise: noise.npy: variance" in failing.stderr


def test_the_command_prints_json_for_machines(models: Any, tmp_path: Path) -> None:
    """--json prints the verdict and every check, also where one fails."""
    said = json.loads(run(models.bundles["table7"].path, "--json").stdout)
    assert said["bundle"] == str(models.bundles["table7"].path)
    assert (said["verdict"], [check["name"] for check in said["checks"]]) == ("passed", list(CHECKS))
    broken = Broken(models.bundles["table7"])
    shifted_calibration(broken)
    done = run(broken.write(tmp_path / "1"), "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["verdict"], said["checks"][-1]["passed"]) == (1, "failed", False)


def test_what_cannot_be_checked_is_bad_usage(models: Any, tmp_path: Path) -> None:
    """A path with nothing at it, and a device that isn't there, exit with 2; a folder that is no bundle fails."""
    assert run(tmp_path / "none").returncode == 2
    assert "expected cpu or cuda" in run(models.bundles["table7"].path, "--device", "tpu").stderr
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty").returncode == 1
    with pytest.raises(ConfigError, match="no such folder"):
        verify(tmp_path / "none")


def test_a_device_that_is_not_there_is_said_before_anything_is_checked(models: Any) -> None:
    """Where ONNX Runtime has no CUDA, checking on it is refused; where it has, batches are said not to be promised."""
    said: list[str] = []
    try:
        provider_of("cuda")
    except ConfigError:
        with pytest.raises(ConfigError, match="device cuda: ONNX Runtime has"):
            verify(models.bundles["table7"].path, device="cuda", say=lambda check: said.append(check.detail))
        assert not said
        return
    assert verify(models.bundles["table7"].path, device="cuda", say=lambda check: said.append(check.detail)).passed
    assert "not promised on cuda" in said


def test_verifying_takes_no_pytorch() -> None:
    """Neither PyTorch nor the training component is loaded to verify a bundle."""
    script = "import sys, vaeserve_export.verify; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert "onnx" in loaded
    assert not {"torch", "vaeserve_training", "onnxscript", "sklearn"} & set(loaded)
