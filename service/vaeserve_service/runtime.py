"""The one place that runs ONNX graphs, so that bits agree wherever a row is scored.

Sessions have one intra-op thread each: more would split a sum in other places, and so change its bits. Parallelism is
runners, each with a call of its own; a session may be run by several threads at once.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

# ONNX Runtime's Linux wheels report usage unless told otherwise before they are imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from vaeserve.errors import BundleError, ConfigError, InternalError, InvalidInputError, first_line
from vaeserve.graph import refuse_unsafe
from vaeserve.interface import Value, refuse_other

if TYPE_CHECKING:
    from vaeserve.bundle import Bundle
    from vaeserve.manifest import Graph as GraphName
    from vaeserve.manifest import Manifest

Arrays = dict[str, NDArray[Any]]
Device = Literal["cpu", "cuda"]

VERSION: str = ort.__version__
GRAPHS: tuple["GraphName", ...] = ("encoder", "decoder", "scorer")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# How far outputs may lie from a reference: `|a - b| <= TOLERANCE * max(1, |b|)`; one level for integer pixels.
TOLERANCE = 1e-4
# Rows x samples of one call: enough to fill the caches, and no more memory for a large input than for a small one.
CHUNK = 4096
# The scorer's outputs that are one number a row; the others are only worth copying for who asks.
_DTYPES = {"float": "FLOAT32", "uint8": "UINT8", "int32": "INT32", "string": "STRING"}
_BY_ROW = ("elbo", "log_likelihood", "kl", "iwae", "status")


class Graph:
    """An ONNX graph, ready to run."""

    def __init__(self, content: bytes, *, name: str, device: Device = "cpu") -> None:
        """Build a session of a serialized graph.

        Raises BundleError for a graph that ONNX Runtime can't load or that reaches out of itself, ConfigError where the
        device isn't there.
        """
        refuse_unsafe(content, name)
        provider = provider_of(device)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what fails is raised, and said once
        options.add_session_config_entry("session.load_model_format", "ONNX")  # by default the bytes may choose
        try:
            # On the CPU there is nothing to fall back to, and ONNX Runtime prints that it tries.
            self._session = ort.InferenceSession(
                content, options, providers=[provider], enable_fallback=int(device != "cpu")
            )
            self.takes = {value.name: _value(value) for value in self._session.get_inputs()}
            self.gives = {value.name: _value(value) for value in self._session.get_outputs()}
        except Exception as error:
            raise BundleError(f"{name}.onnx: ONNX Runtime {VERSION} can't load it: {first_line(error)}") from None
        if self._session.get_providers()[0] != provider:
            raise ConfigError(f"device {device}: ONNX Runtime fell back to {self._session.get_providers()[0]}")
        self.name = name
        self.outputs = list(self.gives)

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str]) -> Arrays:
        """Return the named outputs for one call's inputs."""
        try:
            return dict(zip(outputs, self._session.run(outputs, dict(feeds)), strict=True))
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
        # No rows make one call too, for the outputs' shapes.
        calls = [
            self.run({name: array[start : start + chunk] for name, array in rows.items()} | fixed, outputs)
            for start in range(0, max(count, 1), chunk)
        ]
        if len(calls) == 1:
            return calls[0]
        return {name: np.concatenate([call[name] for call in calls]) for name in outputs}


class Runtime:
    """A bundle's three graphs."""

    def __init__(self, graphs: "Mapping[GraphName, bytes]", *, device: Device = "cpu") -> None:
        """Build sessions of `graphs`: encoder, decoder and scorer, serialized. Raises as Graph does."""
        self._encoder, self._decoder, self._scorer = (Graph(graphs[name], name=name, device=device) for name in GRAPHS)

    @classmethod
    def load(cls, bundle: "Bundle", *, device: Device = "cpu") -> Self:
        """Build a bundle's sessions, see that they are those of its manifest, and compute its golden rows on them.

        Raises BundleError, naming the bundle's file, for one that isn't what its hash, its manifest or PyTorch says,
        and ConfigError where the device isn't there.
        """
        try:
            runtime = cls({name: bundle.graph(name) for name in GRAPHS}, device=device)
            runtime.check_interface(bundle.manifest)
            _check_inputs(bundle.golden, bundle.manifest)
            runtime.check(bundle.golden, bundle.noise[: bundle.manifest.num_samples])
        except (BundleError, InternalError) as error:
            raise BundleError(f"{bundle.path}: {error}") from None
        return runtime

    def check_interface(self, manifest: "Manifest") -> None:
        """Raise BundleError, naming graph and value, unless the graphs take and give what `manifest` says."""
        for name, graph in zip(GRAPHS, (self._encoder, self._decoder, self._scorer), strict=True):
            refuse_other(manifest, name, inputs=graph.takes, outputs=graph.gives)

    def encode(self, inputs: Arrays) -> Arrays:
        """Return `mean` and `log_variance`, both [rows, latent], and `status` [rows]."""
        return self._encoder.run_rows(inputs, chunk=CHUNK)

    def decode(self, z: NDArray[np.float32]) -> Arrays:
        """Return reconstructions in raw units and the likelihood's parameters, for `z` [rows, latent]."""
        return self._decoder.run_rows({"z": z}, chunk=CHUNK)

    def reconstruct(self, inputs: Arrays) -> Arrays:
        """Return the decoder's outputs at the posterior means, and `status` [rows]."""
        posterior = self.encode(inputs)
        return self.decode(posterior["mean"]) | {"status": posterior["status"]}

    def score(self, inputs: Arrays, noise: NDArray[np.float32], *, by_feature: bool = True) -> Arrays:
        """Return the scorer's outputs, for `noise` [samples, latent], with the features' terms or without."""
        outputs = self._scorer.outputs if by_feature else _BY_ROW
        return self._scorer.run_rows(inputs, chunk=max(1, CHUNK // len(noise)), outputs=outputs, noise=noise)

    def check(self, golden: Arrays, noise: NDArray[np.float32]) -> None:
        """Compute the golden rows.

        Raises BundleError, naming the output, if one isn't what PyTorch gave.
        """
        inputs, latents = golden_inputs(golden), golden.get("latents")
        if not inputs or latents is None:
            raise BundleError(f"golden.npz: {', '.join(golden)}; expected inputs/NAME and latents")
        computed = {
            "encoder": self.encode(inputs),
            "decoder": self.decode(latents),
            "scorer": self.score(inputs, noise),
        }
        for graph, outputs in computed.items():
            for name, output in outputs.items():
                expected = golden.get(f"{graph}/{name}")
                error = np.inf if expected is None else output_error(name, output, expected, inputs)
                if not error <= TOLERANCE:
                    raise BundleError(
                        f"{graph}.onnx: {name} of the golden rows is off by {error:.2g} from what PyTorch gave; "
                        f"expected {TOLERANCE:g} at most"
                    )


def provider_of(device: Device) -> str:
    """Return the execution provider of a device; raises ConfigError where ONNX Runtime hasn't got it."""
    provider = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise ConfigError(
            f"device {device}: ONNX Runtime has {', '.join(ort.get_available_providers())}; expected {provider}: "
            "install onnxruntime-gpu in place of onnxruntime"
        )
    return provider


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
