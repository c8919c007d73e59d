"""From PyTorch modules to ONNX graphs: encoder, decoder and scorer, by one path through torch's dynamo exporter."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from vaeserve import __version__
from vaeserve.manifest import FORMAT_VERSION, Graph
from vaeserve.scores import RowStatus
from vaeserve.signature import Signature
from vaeserve_export.categories import give_strings, take_strings
from vaeserve_export.operators import check_operators
from vaeserve_export.structure import checked
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import Inputs

# The first opset with a GroupNormalization whose bits hold in any batch; ONNX Runtime knows it since 1.20.
OPSET = 21

ROWS = torch.export.Dim("rows")
SAMPLES = torch.export.Dim("samples")


# As the traced modules take them: categories as codes.
_TRACED = {"FLOAT32": torch.float32, "UINT8": torch.uint8, "STRING": torch.int64}

_GRAPHS: dict[Graph, str] = {
    "encoder": "Raw inputs to the posterior q(z|x).",
    "decoder": "Latents to the reconstruction in raw units and the likelihood's parameters.",
    "scorer": "Raw inputs and noise to lower bounds on log p(x), in nats, and their parts.",
}
_VALUES = {
    "numeric": "Numbers in raw units, and binary columns as 0 and 1; NaN is missing. [rows, columns]",
    "categorical": "Categories; an empty string is missing. [rows, columns]",
    "image": "Pixels, 0 to 255. [rows, channels, height, width]",
    "noise": "Standard-normal points, the same for all rows. [samples, latent]",
    "z": "Latents. [rows, latent]",
    "mean": "The posterior's mean; NaN unless the status is 0. [rows, latent]",
    "log_variance": "The logarithm of the posterior's variance; NaN unless the status is 0. [rows, latent]",
    "elbo": "log_likelihood - kl, nats; NaN unless the status is 0. [rows]",
    "log_likelihood": "The sum of feature_log_likelihood, nats; NaN unless the status is 0. [rows]",
    "kl": "The divergence of the posterior from the prior, nats; NaN unless the status is 0. [rows]",
    "iwae": "The importance-weighted bound, nats; NaN unless the status is 0. [rows]",
    "feature_log_likelihood": "Each feature's mean over the samples, nats; NaN unless the status is 0. "
    "[rows, features]",
    "degrees": "Of freedom, of Student's t. [rows, features]",
    "loc": "The distribution's location, of scaled values. [rows, features]",
    "scale": "The distribution's scale, of scaled values. [rows, features]",
    "logits": "Of Bernoulli's probability, or the continuous Bernoulli's parameter. [rows, features]",
    "probabilities": "Of each column's categories in order, and of one not seen in training. [rows, categories]",
    "status": "; ".join(f"{int(status)}: {status.name}" for status in RowStatus) + ". [rows]",
}


class Encoder(nn.Module):
    """Raw inputs to the best member's posterior, NaN for a row that can't be taken."""

    outputs = ("mean", "log_variance", "status")

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.vae = ensemble.member

    def forward(self, inputs: Inputs) -> tuple[Tensor, ...]:
        """Return mean and log-variance, [rows, latent], and status [rows]."""
        posterior = self.vae.encode(self.vae.features(inputs))
        status = self.vae.features.status(inputs)
        return (*_only_scorable(status, posterior), status)


class Decoder(nn.Module):
    """Latents to the reconstruction in raw units and the likelihood's parameters."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.vae = ensemble.member
        weight = next(self.vae.decoder.parameters())
        self.outputs = tuple(self._named(weight.new_zeros(1, self.vae.latent_dim)))

    def forward(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that `outputs` names, one row for each of `z` [rows, latent]."""
        return tuple(self._named(z).values())

    def _named(self, z: Tensor) -> dict[str, Tensor]:
        output = self.vae.decode(z)
        likelihood = self.vae.likelihood
        return self.vae.features.inverse(likelihood.mean(output)) | likelihood.parameters_of(output)


class Scorer(nn.Module):
    """Raw inputs and noise to the bounds and their parts, NaN for a row that can't be taken."""

    outputs = ("elbo", "log_likelihood", "kl", "iwae", "feature_log_likelihood", "status")

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, inputs: Inputs, noise: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that `outputs` names, for `noise` [samples, latent]."""
        parts = self.ensemble.score(inputs, noise)
        status = self.ensemble.status(inputs)
        return (*_only_scorable(status, parts), status)


def _only_scorable(status: Tensor, outputs: Sequence[Tensor]) -> list[Tensor]:
    return [
        torch.where((status == 0) if output.ndim == 1 else (status == 0)[:, None], output, torch.nan)
        for output in outputs
    ]


def trace(ensemble: Ensemble, signature: Signature) -> dict[Graph, onnx.ModelProto]:
    """Return the three graphs, with a symbolic `rows` axis and, in the scorer, a symbolic `samples` axis.

    Raises RefusedError for an operator that isn't allowed.
    """
    # What they hold doesn't matter; an axis of one would be taken for a fixed one.
    inputs = {
        spec.name: torch.zeros(2, *spec.shape[1:], dtype=_TRACED[spec.dtype])  # (rows, ...)
        for spec in signature.inputs
    }
    rows = {name: {0: ROWS} for name in inputs}
    points = torch.zeros(2, ensemble.member.latent_dim)
    encoder = _trace(Encoder(ensemble), {"inputs": inputs}, {"inputs": rows}, (*inputs,))
    decoder = _trace(Decoder(ensemble), {"z": points}, {"z": {0: ROWS}}, ("z",))
    scorer = _trace(
        Scorer(ensemble),
        {"inputs": inputs, "noise": points},
        {"inputs": rows, "noise": {0: SAMPLES}},
        (*inputs, "noise"),
    )
    take_strings(encoder, signature.categorical_columns)
    give_strings(decoder, signature.categorical_columns)
    take_strings(scorer, signature.categorical_columns)
    graphs: dict[Graph, onnx.ModelProto] = {"encoder": encoder, "decoder": decoder, "scorer": scorer}
    return {name: _finished(name, model) for name, model in graphs.items()}


def _trace(
    module: Encoder | Decoder | Scorer,
    arguments: dict[str, Any],
    axes: dict[str, Any],
    inputs: Sequence[str],
) -> onnx.ModelProto:
    # The exporter warns of what isn't installed and of its own deprecations; what matters is checked below.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            kwargs=arguments,
            dynamo=True,
            input_names=list(inputs),
            output_names=list(module.outputs),
            dynamic_shapes=axes,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - only the older exporter returns nothing
    return program.model_proto


def _finished(name: Graph, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with its shapes and what it is, checked."""
    _say_what_it_is(model, name)
    model = checked(model, name)
    check_operators(model, name)
    return model


def _say_what_it_is(model: onnx.ModelProto, name: Graph) -> None:
    model.producer_name, model.producer_version = "vaeserve", __version__
    model.doc_string = _GRAPHS[name]
    model.graph.name = name
    # The exporter's notes name source files of the machine that it ran on.
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
        value.doc_string = _VALUES.get(value.name) or _VALUES.get(value.name.rpartition("/")[2], "")
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    helper.set_model_props(model, {"vaeserve.graph": name, "vaeserve.format_version": str(FORMAT_VERSION)})
