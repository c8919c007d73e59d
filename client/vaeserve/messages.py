"""The wire's messages to and from what a caller of the client holds."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import InvalidInputError, ServerError
from vaeserve.latents import Interpolation, check_draws, check_path
from vaeserve.scores import Attribution, Bound, ScoreOptions, Scores
from vaeserve.signature import Column, Kind, Signature, TensorSpec
from vaeserve.tensors import from_tensor, from_tensors, to_tensor, to_tensors
from vaeserve.v1 import vae_pb2 as pb

Arrays = Mapping[str, NDArray[Any]]

BOUNDS = {Bound.ELBO: pb.ELBO, Bound.IWAE: pb.IWAE}
METHODS = {Interpolation.LINEAR: pb.LINEAR, Interpolation.SPHERICAL: pb.SPHERICAL}
INPUT_DTYPES = {"FLOAT32": pb.FLOAT32, "UINT8": pb.UINT8, "STRING": pb.STRING}
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Posteriors of rows: mean and log-variance, float32 [rows, latent], and each row's `RowStatus`, int8."""

    model: str
    version: str
    mean: NDArray[np.float32]
    log_variance: NDArray[np.float32]
    status: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Decoded:
    """Reconstructions in raw units and the likelihood's parameters, by name, each [rows, ...]."""

    model: str
    version: str
    outputs: dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Interpolated:
    """As `Decoded`, a row for each step, with the path's latents, float32 [steps, latent]."""

    model: str
    version: str
    outputs: dict[str, NDArray[Any]]
    latents: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Reconstructed:
    """As `Decoded`, with each row's `RowStatus`, int8."""

    model: str
    version: str
    outputs: dict[str, NDArray[Any]]
    status: NDArray[np.int8]


@dataclass(frozen=True)
class Served:
    """A model's name and its served versions, newest first."""

    name: str
    versions: tuple[str, ...]


@dataclass(frozen=True)
class ModelInfo:
    """What a model takes, and its bundle's manifest."""

    name: str
    version: str
    signature: Signature
    manifest: dict[str, Any]
    manifest_sha256: str
    """Of the manifest's bytes, which the bundle's version is told by."""


def spec(model: str, version: str) -> pb.ModelSpec:
    """Return which model a call is for; raises InvalidInputError for what is no text."""
    try:
        return pb.ModelSpec(name=model, version=version)
    except (TypeError, ValueError):
        raise InvalidInputError(f"model: {model!r}, version {version!r}; expected text") from None


def score_request(model: pb.ModelSpec, inputs: Arrays, options: ScoreOptions) -> pb.ScoreRequest:
    """Return the request to score `inputs`."""
    return pb.ScoreRequest(
        model=model,
        inputs=to_tensors(inputs),
        num_samples=options.num_samples,
        bound=BOUNDS[options.bound],
        seed=options.seed,
        false_positive_rate=options.false_positive_rate,
        top_features=options.top_features,
    )


def encode_request(model: pb.ModelSpec, inputs: Arrays) -> pb.EncodeRequest:
    """Return the request to encode `inputs`."""
    return pb.EncodeRequest(model=model, inputs=to_tensors(inputs))


def decode_request(model: pb.ModelSpec, inputs: Arrays) -> pb.DecodeRequest:
    """Return the request to decode the `latents` of `inputs`."""
    return pb.DecodeRequest(model=model, latents=to_tensor(inputs["latents"], "latents"))


def reconstruct_request(model: pb.ModelSpec, inputs: Arrays) -> pb.ReconstructRequest:
    """Return the request to reconstruct `inputs`."""
    return pb.ReconstructRequest(model=model, inputs=to_tensors(inputs))


def generate_request(model: pb.ModelSpec, count: int, *, seed: int, temperature: float) -> pb.GenerateRequest:
    """Return the request to generate `count` rows; raises InvalidInputError for a number out of its range."""
    check_draws(count, seed=seed, temperature=temperature)
    return pb.GenerateRequest(model=model, count=count, seed=seed, temperature=temperature)


def interpolate_request(
    model: pb.ModelSpec, start: NDArray[Any], end: NDArray[Any], *, steps: int, method: Interpolation
) -> pb.InterpolateRequest:
    """Return the request to interpolate; raises InvalidInputError for steps or a method that can't be."""
    check_path(steps, method)
    return pb.InterpolateRequest(
        model=model, start=to_tensor(start, "start"), end=to_tensor(end, "end"), steps=steps, method=METHODS[method]
    )


def read_scores(response: pb.ScoreResponse) -> Scores:
    """Return a response's scores."""
    return Scores(
        model=response.model.name,
        version=response.model.version,
        score=np.array(response.score, np.float32),
        elbo=np.array(response.elbo, np.float32),
        log_likelihood=np.array(response.log_likelihood, np.float32),
        kl=np.array(response.kl, np.float32),
        p_value=np.array(response.p_value, np.float64),
        anomalous=np.array(response.anomalous, np.bool_),
        status=np.array(response.status, np.int8),
        attributions=tuple(tuple(map(Attribution, row.features, row.excess)) for row in response.attributions),
    )


def read_encoded(response: pb.EncodeResponse) -> Encoded:
    """Return a response's posteriors."""
    return Encoded(
        model=response.model.name,
        version=response.model.version,
        mean=from_tensor(response.mean, "mean"),
        log_variance=from_tensor(response.log_variance, "log_variance"),
        status=np.array(response.status, np.int8),
    )


def read_decoded(response: pb.DecodeResponse | pb.GenerateResponse) -> Decoded:
    """Return a response's reconstructions."""
    return Decoded(response.model.name, response.model.version, from_tensors(response.outputs))


def read_interpolated(response: pb.InterpolateResponse) -> Interpolated:
    """Return a response's path, and its reconstructions."""
    return Interpolated(
        response.model.name,
        response.model.version,
        from_tensors(response.outputs),
        from_tensor(response.latents, "latents"),
    )


def read_reconstructed(response: pb.ReconstructResponse) -> Reconstructed:
    """Return a response's reconstructions."""
    return Reconstructed(
        response.model.name,
        response.model.version,
        from_tensors(response.outputs),
        np.array(response.status, np.int8),
    )


def read_models(response: pb.ListModelsResponse) -> list[Served]:
    """Return a response's models that are served."""
    ready = {
        model.name: tuple(version.version for version in model.versions if version.state == pb.READY)
        for model in response.models
    }
    return [Served(name, versions) for name, versions in ready.items() if versions]


def read_model(response: pb.GetModelResponse) -> ModelInfo:
    """Return a response's model; raises ServerError if the server is of a kind that this client doesn't know."""
    dtypes = {enum: name for name, enum in INPUT_DTYPES.items()}
    for tensor in response.inputs:
        _refuse_unknown(response, f"input dtype {tensor.dtype}", tensor.dtype in dtypes, list(INPUT_DTYPES))
    for column in response.columns:
        _refuse_unknown(response, f"column kind {column.kind!r}", column.kind in KINDS, list(KINDS))
    try:
        signature = Signature(
            tuple(TensorSpec(i.name, dtypes[i.dtype], tuple(i.shape)) for i in response.inputs),  # type: ignore[arg-type]
            tuple(Column(c.name, c.kind, tuple(c.categories), c.nullable) for c in response.columns),  # type: ignore[arg-type]
        )
    except ValueError as error:
        raise ServerError(f"model {response.model.name!r}: {error}: upgrade vaeserve, here or there") from None
    digest = hashlib.sha256(response.manifest.encode()).hexdigest()
    return ModelInfo(response.model.name, response.model.version, signature, json.loads(response.manifest), digest)


def _refuse_unknown(response: pb.GetModelResponse, what: str, is_known: bool, known: list[str]) -> None:
    if not is_known:
        raise ServerError(
            f"model {response.model.name!r}: {what}; this client knows {', '.join(known)}: upgrade vaeserve"
        )
