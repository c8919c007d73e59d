"""What the Open Inference Protocol calls a model: one operation of a model version, under a name of its own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import InvalidInputError, NotFoundError
from vaeserve.interface import Value, Values
from vaeserve.scores import Attribution, ScoreOptions
from vaeserve_service.model import Model, OperationName
from vaeserve_service.packed import arrays
from vaeserve_service.repository import Repository
from vaeserve_service.requests import Arrays, Request

# What a name ends with; a model's own has no dot, so that none of them can be taken for another.
SUFFIXES: dict[str, OperationName] = {
    "": "score",
    ".encode": "encode",
    ".decode": "decode",
    ".reconstruct": "reconstruct",
}
LATENTS = "latents"
ATTRIBUTIONS = ("attribution_feature", "attribution_excess")

_NUMBER, _STATUS = Value("FLOAT32", (-1,)), {"status": Value("INT32", (-1,))}
_SCORES: Values = {
    **dict.fromkeys(("score", "elbo", "log_likelihood", "kl"), _NUMBER),
    "p_value": Value("FLOAT64", (-1,)),
    "anomalous": Value("BOOL", (-1,)),
    **_STATUS,
}
_ATTRIBUTIONS: Values = dict(zip(ATTRIBUTIONS, (Value("STRING", (-1, -1)), Value("FLOAT32", (-1, -1))), strict=True))


class Endpoint(NamedTuple):
    """An operation of a model version, and the suffix of its name."""

    model: Model
    suffix: str

    @property
    def name(self) -> str:
        """What callers name it by."""
        return self.model.name + self.suffix

    @property
    def operation(self) -> OperationName:
        """What it does."""
        return SUFFIXES[self.suffix]

    @property
    def inputs(self) -> Values:
        """What it takes, all of it."""
        if self.operation == "decode":
            return {LATENTS: Value("FLOAT32", (-1, self.model.manifest.latent_dim))}
        return {spec.name: Value(spec.dtype, spec.shape) for spec in self.model.manifest.signature.inputs}

    @property
    def outputs(self) -> Values:
        """What it can give, in the order in which it does."""
        match self.operation:
            case "score":
                return {**_SCORES, **_ATTRIBUTIONS}
            case "encode":
                return self.model.encoder_outputs
            case "decode":
                return self.model.decoder_outputs
            case "reconstruct":
                return {**self.model.decoder_outputs, **_STATUS}

    def asked(self, names: Sequence[str], options: ScoreOptions) -> Sequence[str]:
        """Return the outputs that were asked for, or where none was those that the options give.

        Raises InvalidInputError for one that there isn't, or that is there twice.
        """
        outputs = self.outputs
        if not names:
            return [name for name in outputs if options.top_features or name not in ATTRIBUTIONS]
        for position, name in enumerate(names):
            if name not in outputs:
                raise InvalidInputError(f"outputs[{position}]: {name!r}; {self.name} has {', '.join(outputs)}")
            if name in names[:position]:
                raise InvalidInputError(f"outputs[{position}]: {name!r} is there twice; expected each once")
        return names

    def submit(self, inputs: Arrays, options: ScoreOptions) -> Request:
        """Have the inputs' rows computed. Raises as the model does, before anything is."""
        match self.operation:
            case "score":
                return self.model.score(inputs, options)
            case "encode":
                return self.model.encode(inputs)
            case "decode":
                return self.model.decode(_latents(inputs))
            case "reconstruct":
                return self.model.reconstruct(inputs)

    def answer(self, computed: Arrays, names: Sequence[str], options: ScoreOptions) -> Arrays:
        """Return the named outputs, as `outputs` has them, of what was computed."""
        given = dict(computed)
        if "records" in given:
            given |= arrays(given.pop("records"))
        if "status" in given:
            given["status"] = given["status"].astype(np.int32, copy=False)
        if not set(names).isdisjoint(ATTRIBUTIONS):
            count = min(options.top_features, self.model.manifest.features)
            rows = given.get("attributions", np.empty(len(given["score"]), object))
            given |= zip(ATTRIBUTIONS, _attributions(rows, count), strict=True)
        return {name: given[name] for name in names}


def find(repository: Repository, name: str, version: str) -> Endpoint:
    """Return what a name and a version are of, an empty one the newest.

    Raises InvalidInputError for no name, NotFoundError for one of nothing, naming what there is.
    """
    if not name:
        raise InvalidInputError(f"model name: empty; expected one of {', '.join(repository.names())}")
    model, dot, operation = name.partition(".")
    if dot + operation not in SUFFIXES:
        raise NotFoundError(f"model: {name!r}; expected {model!r} alone or with {', '.join(filter(None, SUFFIXES))}")
    return Endpoint(repository.get(model, version), dot + operation)


def _latents(inputs: Arrays) -> NDArray[Any]:
    if set(inputs) not in ({LATENTS}, {""}):
        given = ", ".join(sorted(name or "an array without a name" for name in inputs))
        raise InvalidInputError(f"inputs: {given or 'none'}; the model takes {LATENTS}")
    return next(iter(inputs.values()))


def _attributions(rows: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return the rows' features and excesses, both [rows, count]; what a row lacks is empty, and NaN."""
    features = np.full((len(rows), count), "", object)
    excess = np.full((len(rows), count), np.nan, np.float32)
    for position, row in enumerate(rows if count else ()):
        attributions: tuple[Attribution, ...] = row
        for rank, attribution in enumerate(attributions):
            features[position, rank] = attribution.feature
            excess[position, rank] = attribution.excess
    return features, excess
