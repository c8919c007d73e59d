"""What a job computes of each row: its score, its posterior, or its reconstruction."""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vaeserve.scores import RowStatus, ScoreOptions, Scores
from vaeserve.signature import Signature
from vaeserve.source import IMAGE
from vaeserve_jobs.attributions import ATTRIBUTIONS
from vaeserve_jobs.decoded import columns_of
from vaeserve_jobs.model import Inputs, Model

_SCORES = {
    "score": pa.float32(),
    "elbo": pa.float32(),
    "log_likelihood": pa.float32(),
    "kl": pa.float32(),
    "p_value": pa.float64(),
    "anomalous": pa.bool_(),
}
_STATUS = pa.array([status.name for status in RowStatus])


class Answer(NamedTuple):
    """What came of a batch: columns, one entry a row; each row's status; its scores, if that was the task.

    kept: which rows are for the output; None for all.
    """

    columns: list[pa.Array]
    status: NDArray[np.int8]
    scores: Scores | None = None
    kept: NDArray[np.bool_] | None = None


class Task(Protocol):
    """What is computed of a batch, and which columns it makes."""

    def fields(self, model: Model) -> list[pa.Field]:
        """Return the output's columns, without those that are carried through."""
        ...

    def compute(self, model: Model, inputs: Inputs) -> Answer:
        """Return what came of a batch of the model's inputs."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return what it is and its options: what makes its output what it is."""
        ...

    @property
    def top(self) -> int:
        """How many of the worst rows to gather."""
        ...


@dataclass(frozen=True)
class Score:
    """Scores, with what they are made of; only_anomalous leaves all other rows out."""

    options: ScoreOptions = field(default_factory=ScoreOptions)
    only_anomalous: bool = False
    top: int = 0

    def fields(self, model: Model) -> list[pa.Field]:
        """Return a score's parts, its meaning, and the status; the top features if asked for."""
        del model
        fields = [*_SCORES.items(), ("status", pa.string())]
        if self.options.top_features:
            fields.append(("top_features", ATTRIBUTIONS))
        return [pa.field(*some) for some in fields]

    def compute(self, model: Model, inputs: Inputs) -> Answer:
        """Return the scores of a batch."""
        scores, attributions = model.score(inputs, self.options)
        columns = [pa.array(getattr(scores, name), kind) for name, kind in _SCORES.items()]
        columns.append(_names(scores.status))
        if attributions is not None:
            columns.append(attributions)
        return Answer(columns, scores.status, scores, scores.anomalous if self.only_anomalous else None)

    def to_json(self) -> dict[str, Any]:
        """Return the options of the scores, and which rows are written."""
        options = asdict(self.options) | {"bound": self.options.bound.value}
        return {"kind": "score", **options, "only_anomalous": self.only_anomalous, "top": self.top}


@dataclass(frozen=True)
class Encode:
    """Posteriors: `mean` and `log_variance`, lists of as many numbers as a latent has."""

    top: int = 0

    def fields(self, model: Model) -> list[pa.Field]:
        """Return the posterior's two columns and the status."""
        latents = pa.list_(pa.float32(), model.latent_dim)
        return [pa.field("mean", latents), pa.field("log_variance", latents), pa.field("status", pa.string())]

    def compute(self, model: Model, inputs: Inputs) -> Answer:
        """Return the posteriors of a batch."""
        encoded = model.encode(inputs)
        lists = [
            pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), some.shape[1])
            for some in (encoded.mean, encoded.log_variance)
        ]
        return Answer([*lists, _names(encoded.status)], encoded.status)

    def to_json(self) -> dict[str, Any]:
        """Return its name."""
        return {"kind": "encode"}


@dataclass(frozen=True)
class Reconstruct:
    """Reconstructions at the posterior means: the model's columns in raw units, or its images."""

    top: int = 0

    def fields(self, model: Model) -> list[pa.Field]:
        """Return the model's columns, or the image, and the status."""
        return [*decoded_fields(model.signature), pa.field("status", pa.string())]

    def compute(self, model: Model, inputs: Inputs) -> Answer:
        """Return the reconstructions of a batch."""
        made = model.reconstruct(inputs)
        columns = decoded_columns(made.outputs, model.signature)
        return Answer([*columns, _names(made.status)], made.status)

    def to_json(self) -> dict[str, Any]:
        """Return its name."""
        return {"kind": "reconstruct"}


def decoded_fields(signature: Signature) -> list[pa.Field]:
    """Return the columns of decoded rows: numbers as float32, categories as text, images as tensors."""
    if signature.columns:
        return [
            pa.field(column.name, pa.string() if column.kind == "categorical" else pa.float32())
            for column in signature.columns
        ]
    return [pa.field(IMAGE, pa.fixed_shape_tensor(pa.uint8(), signature.inputs[0].shape[1:]))]


def decoded_columns(outputs: dict[str, NDArray[Any]], signature: Signature) -> list[pa.Array]:
    """Return what a decoder gave as the columns of `decoded_fields`."""
    if signature.columns:
        fields = decoded_fields(signature)
        arrays = columns_of(outputs, signature)
        return [pa.array(array, some.type) for array, some in zip(arrays, fields, strict=True)]
    images = outputs[IMAGE]
    kind = decoded_fields(signature)[0].type
    flat = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), images[0].size if len(images) else 1)
    return [pa.ExtensionArray.from_storage(kind, flat)]


def _names(status: NDArray[np.int8]) -> pa.Array:
    return _STATUS.take(pa.array(status))
