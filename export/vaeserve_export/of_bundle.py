"""A bundle as the subject of a report: its graphs in ONNX Runtime, and rows that it is given.

Here and not in the training, for only the export may take both the runtime and what draws a report. A bundle holds no
rows but a few synthetic ones: what takes rows is left out of its report unless some are given.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from numpy.typing import NDArray

from vaeserve.bundle import Bundle
from vaeserve_service.runtime import Arrays, Runtime
from vaeserve_training.data import Dataset
from vaeserve_training.report.architecture import Layer, Stack
from vaeserve_training.report.subject import Parity, Subject, some_of
from vaeserve_training.report.words import counted, file_name, prior_words, settings, taken, versions

# ONNX's operators that a network's layers are made of, where one of their inputs is learned.
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "LayerNormalization"})
_OF_ROWS = "latent dimensions and space, reconstructions, detection, the most anomalous rows"
_NO_ROWS = "A bundle holds no rows: --data ROWS gives some, of the test for instance, and --label COLUMN their labels."


class Graphs:
    """A bundle's graphs as what a report computes with."""

    def __init__(self, bundle: Bundle) -> None:
        self._runtime = Runtime.load(bundle)
        self._noise = bundle.noise[: bundle.manifest.num_samples]
        self._latent_dim = bundle.manifest.latent_dim

    @property
    def latent_dim(self) -> int:
        """The dimensions of the latent space."""
        return self._latent_dim

    def encode(self, inputs: Arrays) -> Arrays:
        """Return `mean` and `log_variance`, both [rows, latent]."""
        return self._runtime.encode(inputs)

    def decode(self, z: NDArray[np.float32]) -> Arrays:
        """Return reconstructions in raw units, by input name, for `z` [rows, latent]."""
        return self._runtime.decode(z)

    def score(self, inputs: Arrays) -> Arrays:
        """Return the bounds, nats, and the status of rows, at the bundle's own noise."""
        return self._runtime.score(inputs, self._noise)


def subject_of(bundle: Bundle, rows: Dataset | None = None) -> Subject:
    """Return a bundle as a subject, shown on `rows` if there are some; raises BundleError for one that isn't whole."""
    manifest, training = bundle.manifest, bundle.manifest.training
    return Subject(
        title=f"What {manifest.name}, version {bundle.version or 'none'}, learned of {file_name(training.data)}",
        lead="An exported variational autoencoder, seen by what its graphs compute as they are served.",
        model=Graphs(bundle),
        signature=manifest.signature,
        calibration=bundle.calibration,
        data={
            "source": training.data,
            "rows": f"{training.train_rows:,} train, {manifest.calibration.rows:,} calibration",
            **taken(manifest.signature),
        },
        design=_design(bundle),
        provenance=_provenance(bundle),
        architecture=(_encoder(bundle), _decoder(bundle)),
        rows=None if rows is None else some_of(rows),
        rows_name="" if rows is None else rows.name,
        golden=bundle.golden["latents"],
        held_out=training.held_out,
        prior=prior_words(manifest.prior),
        masked=manifest.masked,
        parity=Parity(manifest.parity.errors, manifest.parity.rows, manifest.parity.tolerance),
        absent={"training": "A bundle doesn't hold how it went: vaeserve report RUN shows it for the run."}
        | ({_OF_ROWS: _NO_ROWS} if rows is None else {}),
    )


def _design(bundle: Bundle) -> dict[str, str]:
    manifest = bundle.manifest
    facts = {
        "latent space": counted(manifest.latent_dim, "dimension"),
        "prior": prior_words(manifest.prior) + (f", {manifest.exemplars:,} of them" if manifest.exemplars else ""),
        "likelihood": ", ".join(manifest.likelihoods).replace("_", " "),
        "nats are of": manifest.density,
        "graphs": f"ONNX, opset {manifest.opset}",
    }
    if manifest.members > 1:
        facts["members"] = (
            f"{manifest.members}; number {manifest.best_member}, counted from 0, encodes and decodes; a score is the "
            "mean of all"
        )
    return facts


def _provenance(bundle: Bundle) -> dict[str, str]:
    manifest, training = bundle.manifest, bundle.manifest.training
    sections = {
        name: settings(section)
        for name in ("model", "objective", "optimizer")
        if isinstance(section := training.config.get(name), dict)
    }
    return {
        "bundle": f"{manifest.name}, version {bundle.version or 'none'}, SHA-256 {bundle.manifest_sha256}",
        "exported": f"{manifest.created:%Y-%m-%d %H:%M} UTC, with {versions(manifest.exported_with)}",
        "derived from": manifest.derived_from or "",
        "calibrated on": f"{counted(manifest.calibration.rows, 'row')} of {manifest.calibration.data}",
        "trained with": f"seed {training.config.get('seed')}, {versions(training.versions)}",
        **sections,
        "data, SHA-256": training.data_sha256,
    }


def _encoder(bundle: Bundle) -> Stack:
    """Return the layers of the encoder's graph, drawn from its own nodes and weights."""
    signature = bundle.manifest.signature
    raw = (
        ("columns, raw", (len(signature.columns),)) if signature.columns else ("pixels", signature.inputs[0].shape[1:])
    )
    gives = Layer("mean and log-variance of q(z|x)", (2, bundle.manifest.latent_dim))
    return Stack("encoder q(z|x)", [Layer(*raw), *_layers(bundle.graph("encoder")), gives])


def _decoder(bundle: Bundle) -> Stack:
    """Return the layers of the decoder's graph."""
    likelihood = f"p(x|z): {', '.join(bundle.manifest.likelihoods).replace('_', ' ')}"
    gives = Layer(likelihood, (bundle.manifest.features,))
    return Stack(
        "decoder p(x|z)", [Layer("z", (bundle.manifest.latent_dim,)), *_layers(bundle.graph("decoder")), gives]
    )


def _layers(content: bytes) -> Iterator[Layer]:
    """Yield the nodes that a network's layers became, with the shapes and the numbers that they learned."""
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(content)).graph
    learned = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    shapes = {value.name: _shape(value) for value in (*graph.value_info, *graph.output)}
    for node in graph.node:
        weights = sum(learned.get(name, 0) for name in node.input)
        shape = shapes.get(node.output[0], ())
        if node.op_type in LAYERS and weights and len(shape) in (1, 3) and min(shape) > 0:
            yield Layer(node.op_type, shape, weights)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """Return a value's shape behind its rows."""
    return tuple(int(side.dim_value) for side in value.type.tensor_type.shape.dim)[1:]
