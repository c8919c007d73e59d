"""What goes into each of a bundle's graphs and what comes out of it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from vaeserve.errors import BundleError

if TYPE_CHECKING:
    from vaeserve.manifest import Graph, Manifest


class Value(NamedTuple):
    """An input or an output: its dtype as the wire names it, and its shape, -1 for a length that isn't fixed."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} of shape {list(self.shape)}"


Values = Mapping[str, Value]


def inputs_of(manifest: "Manifest", graph: "Graph") -> Values:
    """Return the inputs that a graph has."""
    latents = Value("FLOAT32", (-1, manifest.latent_dim))
    rows = {spec.name: Value(spec.dtype, (-1, *spec.shape[1:])) for spec in manifest.signature.inputs}
    return {"encoder": rows, "decoder": {"z": latents}, "scorer": {**rows, "noise": latents}}[graph]


def outputs_of(manifest: "Manifest", graph: "Graph") -> Values:
    """Return the outputs that a graph has; a decoder has its likelihood's parameters too."""
    latents, number = Value("FLOAT32", (-1, manifest.latent_dim)), Value("FLOAT32", (-1,))
    status = {"status": Value("INT32", (-1,))}
    if graph == "decoder":
        return inputs_of(manifest, "encoder")
    if graph == "encoder":
        return {"mean": latents, "log_variance": latents, **status}
    terms = {"feature_log_likelihood": Value("FLOAT32", (-1, manifest.features))}
    return {**dict.fromkeys(("elbo", "log_likelihood", "kl", "iwae"), number), **terms, **status}


def refuse_other(manifest: "Manifest", graph: "Graph", *, inputs: Values, outputs: Values) -> None:
    """Raise BundleError, naming graph and value, unless a graph takes and gives what the manifest says."""
    for name, value in outputs.items() if graph == "decoder" else ():
        parameter = value.dtype == "FLOAT32" and len(value.shape) == 2
        if name not in outputs_of(manifest, graph) and not parameter:
            raise BundleError(f"{graph}.onnx: output {name[:80]} is {value}; expected a parameter, FLOAT32 [rows, n]")
    if graph == "decoder":
        outputs = {name: value for name, value in outputs.items() if name in outputs_of(manifest, graph)}
    for problem in _problems(inputs, inputs_of(manifest, graph)):
        raise BundleError(f"{graph}.onnx: input {problem}")
    for problem in _problems(outputs, outputs_of(manifest, graph)):
        raise BundleError(f"{graph}.onnx: output {problem}")


def _problems(given: Values, expected: Values) -> Iterator[str]:
    for name in expected:
        if name not in given:
            yield f"{name} is missing; expected {expected[name]}"
        elif given[name] != expected[name]:
            yield f"{name} is {given[name]}; expected {expected[name]}"
    for name in given:
        if name not in expected:
            yield f"{name[:80]} is none that the manifest speaks of; expected {', '.join(expected)}"
