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
from vaeserve.errors import RefusedError
from vaeserve_export.operators import check_operators
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import Inputs

# The first opset with a GroupNormalization whose bits hold in any batch; ONNX Runtime knows it since 1.20.
OPSET = 21

ROWS = torch.export.Dim("rows")
SAMPLES = torch.export.Dim("samples")


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


def trace(ensemble: Ensemble, inputs: Inputs, noise: Tensor) -> dict[str, onnx.ModelProto]:
    """Return the three graphs, with a symbolic `rows` axis and, in the scorer, a symbolic `samples` axis.

    inputs: two example rows or more. noise: two points or more, [samples, latent].

    Raises RefusedError for an operator that isn't allowed.
    """
    rows = {name: {0: ROWS} for name in inputs}
    z = torch.zeros(2, ensemble.member.latent_dim)
    return {
        "encoder": _trace("encoder", Encoder(ensemble), {"inputs": inputs}, {"inputs": rows}, (*inputs,)),
        "decoder": _trace("decoder", Decoder(ensemble), {"z": z}, {"z": {0: ROWS}}, ("z",)),
        "scorer": _trace(
            "scorer",
            Scorer(ensemble),
            {"inputs": inputs, "noise": noise},
            {"inputs": rows, "noise": {0: SAMPLES}},
            (*inputs, "noise"),
        ),
    }


def _trace(
    name: str,
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
    model = onnx.shape_inference.infer_shapes(program.model_proto, check_type=True, strict_mode=True)
    _say_what_it_is(model, name)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise RefusedError(f"{name}.onnx: {error}") from None
    check_operators(model, name)
    return model


def _say_what_it_is(model: onnx.ModelProto, name: str) -> None:
    model.producer_name, model.producer_version = "vaeserve", __version__
    model.doc_string = {
        "encoder": "Raw inputs to the posterior q(z|x).",
        "decoder": "Latents to the reconstruction in raw units and the likelihood's parameters.",
        "scorer": "Raw inputs and noise to bounds on log p(x), in nats, and their parts.",
    }[name]
    model.graph.name = name
    # The exporter's notes name source files of the machine that it ran on.
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]
    helper.set_model_props(model, {"vaeserve.graph": name})
