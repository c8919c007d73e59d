"""The one place that runs ONNX graphs, so that bits agree wherever a row is scored.

Sessions have one intra-op thread each: more would split a sum in other places, and so change its bits. Parallelism is
runners, each with a call of its own; a session may be run by several threads at once.

On a GPU, a graph's inputs and outputs lie in buffers there (`binding`), and it is loaded only if all of it but the
exceptions of `placement` runs there. A graph that takes strings can't be bound: ONNX Runtime copies for it.
"""

import contextlib
import ctypes
import io
import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

# ONNX Runtime's Linux wheels report usage unless told otherwise before they are imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vaeserve.errors import BundleError, ConfigError, InternalError, InvalidInputError, first_line
from vaeserve.graph import giving, refuse_unsafe
from vaeserve.interface import Value, Values, refuse_other
from vaeserve_service.binding import Bindings, takes_strings
from vaeserve_service.placement import misplaced

if TYPE_CHECKING:
    from vaeserve.bundle import Bundle
    from vaeserve.manifest import Graph as GraphName
    from vaeserve.manifest import Manifest

# What fails is raised, and said once.
ort.set_default_logger_severity(4)

Arrays = dict[str, NDArray[Any]]
Device = Literal["cpu", "cuda"]

VERSION: str = ort.__version__
GRAPHS: tuple["GraphName", ...] = ("encoder", "decoder", "scorer")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Single precision rather than TF32's 10 bits, and the same kernels in each process rather than those that win a trial.
_CUDA = {
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",  # not twice as much each time: a limit would soon be reached
}
# How far outputs may lie from a reference: `|a - b| <= TOLERANCE * max(1, |b|)`; one level for integer pixels.
TOLERANCE = 1e-4
# Rows x samples of one call, for a large input takes no more memory than a small one. On the CPU as many as its caches
# hold the layers of, but no fewer than a full batch of the service, 256 rows of 8 samples, for a second call costs too.
CHUNK: dict[Device, int] = {"cpu": 2048, "cuda": 4096}
# Rows of one call of the scorer, however few its samples: under an exemplar prior each makes thousands of numbers, and
# 1024 rows of two samples take a sixth longer each than 256.
_MOST_ROWS: dict[Device, int] = {"cpu": 256, "cuda": 4096}
_DTYPES = {"float": "FLOAT32", "uint8": "UINT8", "int32": "INT32", "string": "STRING"}
_ITEM_BYTES = {"FLOAT32": 4, "UINT8": 1, "INT32": 4, "STRING": 1}
# The scorer's outputs that are one number a row; the others are only worth copying for who asks.
_BY_ROW = ("elbo", "log_likelihood", "kl", "iwae", "status")
# Those that most callers ask for.
_OF_ELBO = ("elbo", "log_likelihood", "kl", "status")


class Graph:
    """An ONNX graph, ready to run."""

    def __init__(self, content: bytes, *, name: str, device: Device = "cpu", memory_bytes: int | None = None) -> None:
        """Build a session of a serialized graph.

        memory_bytes: the most of a GPU's memory that it may take. Raises BundleError for a graph that ONNX Runtime
        can't load or that reaches out of itself, ConfigError where the device isn't there or not all of the graph that
        must runs on it.
        """
        refuse_unsafe(content, name)
        provider = provider_of(device)
        try:
            # ONNX Runtime's own fallback, when it builds a session and when it runs one, is to the CPU.
            self._session = ort.InferenceSession(
                content,
                _session_options(device),
                providers=[(provider, _provider_options(device, memory_bytes))],
                enable_fallback=0,
            )
            self.takes = {value.name: _value(value) for value in self._session.get_inputs()}
            self.gives = {value.name: _value(value) for value in self._session.get_outputs()}
        except Exception as error:
            raise BundleError(f"{name}.onnx: ONNX Runtime {VERSION} can't load it: {first_line(error)}") from None
        self.name = name
        self.outputs = list(self.gives)
        self._bindings: Bindings | None = None
        if device != "cpu":
            self._refuse_on_cpu(content, device)
            if not takes_strings(self._session):
                self._bindings = Bindings(self._session, device)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        """Return the named outputs for one call's inputs."""
        try:
            return dict(zip(outputs, self._session.run(outputs, feeds), strict=True))
        except Exception as error:
            raise InternalError(f"{self.name}: {first_line(error)}") from error

    def run_rows(
        self,
        rows: Mapping[str, NDArray[Any]],
        *,
        chunk: int,
        outputs: Sequence[str] | None = None,
        **fixed: NDArray[Any],
    ) -> Arrays:
        """Return the named outputs, or all, for any number of rows, at most `chunk` of them to a call."""
        outputs = outputs or self.outputs
        count = len(next(iter(rows.values())))
        if count <= chunk:  # no rows make one call too, for the outputs' shapes
            return self._run(rows, fixed, outputs)
        if self._bindings:
            chunk = 1 << chunk.bit_length() - 1  # a power of two, which fills its buffers
        calls = [
            self._run({name: array[start : start + chunk] for name, array in rows.items()}, fixed, outputs)
            for start in range(0, count, chunk)
        ]
        return {name: np.concatenate([call[name] for call in calls]) for name in outputs}

    def _run(self, rows: Mapping[str, NDArray[Any]], fixed: Arrays, outputs: Sequence[str]) -> Arrays:
        if self._bindings is None:
            return self.run({**rows, **fixed}, outputs)
        try:
            return self._bindings.run(rows, fixed, outputs)
        except Exception as error:
            raise InternalError(f"{self.name}: {first_line(error)}") from error

    def _refuse_on_cpu(self, content: bytes, device: Device) -> None:
        """Raise ConfigError unless the device's provider is active, and runs all that may not run on the CPU."""
        provider = PROVIDERS[device]
        if provider not in self._session.get_providers():
            raise ConfigError(_not_there(device, f"ONNX Runtime fell back to {self._session.get_providers()[0]}"))
        operators = {
            node.name: node.op_type
            for part in self._session.get_provider_graph_assignment_info()
            if part.ep_name != provider
            for node in part.get_nodes()
        }
        if refused := misplaced(content, operators, inputs=self.takes):
            what = ", ".join(f"{operators[name]} ({name})" for name in refused[:3])
            raise ConfigError(
                f"device {device}: {self.name}.onnx: ONNX Runtime {VERSION} runs {len(refused)} of its nodes on the "
                f"CPU: {what}; expected strings and lengths of shapes alone: install a newer onnxruntime-gpu"
            )


class Runtime:
    """A bundle's three graphs, and of the scorer what the ELBO takes."""

    def __init__(
        self, graphs: "Mapping[GraphName, bytes]", *, device: Device = "cpu", memory_bytes: int | None = None
    ) -> None:
        """Build sessions of `graphs`: encoder, decoder and scorer, serialized. Raises as Graph does."""
        self._encoder, self._decoder, self._scorer = (
            Graph(graphs[name], name=name, device=device, memory_bytes=memory_bytes) for name in GRAPHS
        )
        # A session computes all outputs, whichever are asked for: of the reference model "tab" without the others a row
        # takes three quarters of the time, and 256 rows nine tenths. A GPU's time is elsewhere, and its memory is dear.
        self._elbo = self._scorer
        if device == "cpu":
            self._elbo = Graph(giving(graphs["scorer"], _OF_ELBO), name="scorer")
        self._chunk, self._most_rows = CHUNK[device], _MOST_ROWS[device]

    @classmethod
    def load(cls, bundle: "Bundle", *, device: Device = "cpu", memory_bytes: int | None = None) -> Self:
        """Build a bundle's sessions, see that they are those of its manifest, and compute its golden rows on them.

        Raises BundleError, naming the bundle's file, for one that isn't what its hash, its manifest or PyTorch says,
        and ConfigError where the device isn't there.
        """
        try:
            runtime = cls({name: bundle.graph(name) for name in GRAPHS}, device=device, memory_bytes=memory_bytes)
            runtime.check_interface(bundle.manifest)
            _check_inputs(bundle.golden, bundle.manifest)
            runtime.check(bundle.golden, bundle.noise[: bundle.manifest.num_samples])
        except (BundleError, InternalError) as error:
            if "cuDNN is unavailable" in str(error):  # the first call that takes it is the first to look for it
                raise ConfigError(_not_there(device, _of_cuda(error))) from None
            raise BundleError(f"{bundle.path}: {error}") from None
        return runtime

    def gives(self, graph: "GraphName") -> Values:
        """Return a graph's outputs."""
        return dict(zip(GRAPHS, (self._encoder, self._decoder, self._scorer), strict=True))[graph].gives

    def row_bytes(self, graph: "GraphName") -> int:
        """Return how many bytes a row of a graph's outputs takes, of what has no fixed size the least."""
        return sum(_ITEM_BYTES[value.dtype] * abs(math.prod(value.shape[1:])) for value in self.gives(graph).values())

    def check_interface(self, manifest: "Manifest") -> None:
        """Raise BundleError, naming graph and value, unless the graphs take and give what `manifest` says."""
        for name, graph in zip(GRAPHS, (self._encoder, self._decoder, self._scorer), strict=True):
            refuse_other(manifest, name, inputs=graph.takes, outputs=graph.gives)

    def encode(self, inputs: Arrays) -> Arrays:
        """Return `mean` and `log_variance`, both [rows, latent], and `status` [rows]."""
        return self._encoder.run_rows(inputs, chunk=self._chunk)

    def decode(self, z: NDArray[np.float32]) -> Arrays:
        """Return reconstructions in raw units and the likelihood's parameters, for `z` [rows, latent]."""
        return self._decoder.run_rows({"z": z}, chunk=self._chunk)

    def reconstruct(self, inputs: Arrays) -> Arrays:
        """Return the decoder's outputs at the posterior means, and `status` [rows]."""
        posterior = self.encode(inputs)
        return self.decode(posterior["mean"]) | {"status": posterior["status"]}

    def score(
        self, inputs: Arrays, noise: NDArray[np.float32], *, by_feature: bool = True, iwae: bool = True
    ) -> Arrays:
        """Return the scorer's outputs, for `noise` [samples, latent].

        by_feature, iwae: whether the features' terms and that bound must be among them.
        """
        scorer = self._scorer if by_feature or iwae else self._elbo
        outputs = self._scorer.outputs if by_feature else _BY_ROW if iwae else _OF_ELBO
        chunk = min(self._most_rows, max(1, self._chunk // len(noise)))
        return scorer.run_rows(inputs, chunk=chunk, outputs=outputs, noise=noise)

    def check(self, golden: Arrays, noise: NDArray[np.float32]) -> None:
        """Compute the golden rows.

        Raises BundleError, naming the output, if one isn't what PyTorch gave.
        """
        inputs, latents = golden_inputs(golden), golden.get("latents")
        if not inputs or latents is None:
            raise BundleError(f"golden.npz: {', '.join(golden)}; expected inputs/NAME and latents")
        computed = (
            ("encoder", self.encode(inputs)),
            ("decoder", self.decode(latents)),
            ("scorer", self.score(inputs, noise)),
            ("scorer", self.score(inputs, noise, by_feature=False, iwae=False)),
        )
        for graph, outputs in computed:
            for name, output in outputs.items():
                expected = golden.get(f"{graph}/{name}")
                error = np.inf if expected is None else output_error(name, output, expected, inputs)
                if not error <= TOLERANCE:
                    raise BundleError(
                        f"{graph}.onnx: {name} of the golden rows is off by {error:.2g} from what PyTorch gave; "
                        f"expected {TOLERANCE:g} at most"
                    )


def provider_of(device: Device) -> str:
    """Return the execution provider of a device; raises ConfigError, saying what to install, where it can't run."""
    provider = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise ConfigError(
            f"device {device}: ONNX Runtime has {', '.join(ort.get_available_providers())}; expected {provider}: "
            "install onnxruntime-gpu in place of onnxruntime"
        )
    if device != "cpu":
        _refuse_without_gpu(device)
    return provider


@cache
def _refuse_without_gpu(device: Device) -> None:
    """Raise ConfigError, with the reason, unless there is memory on the device and the libraries to get it with."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it doesn't find
        ort.preload_dlls()
    try:
        ort.OrtValue.ortvalue_from_shape_and_type([1], np.float32, device)
    except Exception as error:
        raise ConfigError(_not_there(device, _missing_library() or _of_cuda(error) or first_line(error))) from None


def _not_there(device: Device, reason: str) -> str:
    return (
        f"device {device}: {reason}; expected an NVIDIA GPU, its driver, CUDA {ort.cuda_version} and cuDNN 9: "
        "install onnxruntime-gpu[cuda,cudnn] in place of onnxruntime"
    )


def _missing_library() -> str:
    """Return which library the CUDA provider lacks, for ONNX Runtime only logs it; empty where it has all."""
    try:
        ctypes.CDLL(str(Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return first_line(error)
    return ""


def _of_cuda(error: Exception) -> str:
    """Return what CUDA said, among ONNX Runtime's words of where and on what host; empty where it said nothing."""
    said = re.search(r"(CUDA failure \d+|cuDNN is unavailable)[^;\n]*", str(error))
    return said[0].strip() if said else ""


def _session_options(device: Device) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.load_model_format", "ONNX")  # by default the bytes may choose
    if device != "cpu":
        options.use_deterministic_compute = True
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _provider_options(device: Device, memory_bytes: int | None) -> dict[str, str]:
    if device == "cpu":
        return {}
    return _CUDA if memory_bytes is None else _CUDA | {"gpu_mem_limit": str(memory_bytes)}


def _value(value: Any) -> Value:
    """Return what ONNX Runtime says of an input or output: `tensor(float)` and a shape, text for a free length."""
    dtype = value.type.removeprefix("tensor(").removesuffix(")")
    return Value(
        _DTYPES.get(dtype, value.type), tuple(length if isinstance(length, int) else -1 for length in value.shape)
    )


def _check_inputs(golden: Arrays, manifest: "Manifest") -> None:
    """Raise BundleError unless the golden rows are rows of the model, one or more, and latents of it."""
    inputs = golden_inputs(golden)
    latents = golden.get("latents", np.empty(0, np.float32))
    try:
        checked = manifest.signature.check(inputs)
    except InvalidInputError as error:
        raise BundleError(f"golden.npz: inputs/{error}") from None
    if any(checked[name].dtype != array.dtype or not len(array) for name, array in inputs.items()):
        given = {name: f"{array.dtype} {list(array.shape)}" for name, array in inputs.items()}
        raise BundleError(f"golden.npz: {given}; expected one row or more, of the signature's dtypes")
    if latents.dtype != np.float32 or latents.shape != (max(1, len(latents)), manifest.latent_dim):
        raise BundleError(
            f"golden.npz: latents: {latents.dtype} of shape {list(latents.shape)}; expected float32 of shape "
            f"[n, {manifest.latent_dim}]"
        )


def golden_inputs(golden: Arrays) -> Arrays:
    """Return the golden rows as a model's inputs by name."""
    return {name.removeprefix("inputs/"): array for name, array in golden.items() if name.startswith("inputs/")}


def output_error(name: str, computed: NDArray[Any], reference: NDArray[Any], inputs: Arrays) -> float:
    """Return `largest_error`; of a table in raw units, relative to the largest value of each column.

    inputs: rows like those that were reconstructed, which tell a column's size too.

    Single precision can't resolve a value near 0 in a column of billions any better, and in a column of billionths a
    value isn't right for being near 0.
    """
    if name == "numeric" and computed.shape == reference.shape and len(reference) and reference.dtype.kind == "f":
        rows = np.concatenate([inputs[name], reference]).astype(np.float64)
        size = np.abs(np.where(np.isfinite(rows), rows, 0)).max(axis=0)  # (columns,)
        size = np.where(size, size, 1)
        return largest_error(computed / size, reference / size)
    return largest_error(computed, reference)


def largest_error(computed: NDArray[Any], reference: NDArray[Any]) -> float:
    """Return the largest `|a - b| / max(1, |b|)`; infinite where one is NaN and the other isn't.

    Integers are pixels, rounded from what may lie on either side of a half: one level apart counts as equal. Strings
    are the likeliest categories, and two may be as likely: of them it is the share that differs.
    """
    strings = [array.dtype.kind in "UO" for array in (computed, reference)]
    if computed.shape != reference.shape or strings[0] != strings[1]:
        return float("inf")
    if all(strings):
        return float((computed != reference).mean()) if reference.size else 0.0
    a, b = computed.astype(np.float64), reference.astype(np.float64)
    if not (np.isnan(a) == np.isnan(b)).all():
        return float("inf")
    apart = np.abs(np.nan_to_num(a - b))
    if computed.dtype == np.uint8:
        apart = np.maximum(apart - 1, 0)
    return float((apart / np.maximum(1, np.abs(np.nan_to_num(b)))).max(initial=0))
