"""The manifest: what a bundle says of itself, `manifest.json`."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from vaeserve.errors import BundleError
from vaeserve.scores import LEAST_RATE, Bound, rows_needed
from vaeserve.signature import Signature

FORMAT_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")

_FILES = frozenset({"encoder.onnx", "decoder.onnx", "scorer.onnx", "noise.npy", "calibration.npy", "golden.npz"})
_LARGEST_FILE = 2 * 2**30  # protobuf, and so ONNX, ends there
_LONGEST_MESSAGE = 500

Graph = Literal["encoder", "decoder", "scorer"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Single = Annotated[float, Field(allow_inf_nan=False, ge=-3.4e38, le=3.4e38)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# A share from 0 to 1, as text, for JSON's keys are.
Level = Annotated[str, Field(pattern=r"^(0|1|0\.[0-9]{1,9})$")]


class _Part(BaseModel):
    # The text below each field is its description in the JSON schema.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileEntry(_Part):
    """A file of the bundle."""

    bytes: Annotated[int, Field(ge=0, le=_LARGEST_FILE)]
    """Its size."""
    sha256: Sha256
    """Its SHA-256, in hexadecimal."""


class Moments(_Part):
    """The mean and the standard deviation of a term of the ELBO over the rows, nats."""

    mean: Finite
    """Its mean."""
    standard_deviation: Annotated[Finite, Field(ge=0)]
    """Its standard deviation."""


class CalibrationSummary(_Part):
    """Which rows calibrated each bound, and how their scores lie."""

    rows: Positive
    """How many rows could be scored, and are in calibration.npy."""
    unscorable: Count
    """How many more could not be scored, and were left out."""
    data: str
    """Where the rows came from."""
    data_sha256: str
    """The fingerprint of the rows."""
    quantiles: dict[Bound, dict[Level, Finite]]
    """Quantiles of the scores, nats, by bound and then by level."""
    log_likelihood: Moments
    """Of the ELBO's first term, to see by whether what is served drifts."""
    kl: Moments
    """Of its second term."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if set(self.quantiles) != set(Bound):
            raise ValueError(f"quantiles of {len(self.quantiles)} bounds; expected elbo and iwae")
        for bound, quantiles in self.quantiles.items():
            values = [quantiles[level] for level in sorted(quantiles, key=float)]
            if values != sorted(values):
                raise ValueError(f"quantiles of {bound.value}: {values}; expected ascending ones")
        return self


class Parity(_Part):
    """How far ONNX Runtime's outputs lie from a float64 PyTorch reference on held-out rows."""

    rows: Positive
    """How many rows were compared."""
    tolerance: Finite
    """The largest error that the export let pass."""
    errors: Annotated[dict[str, Annotated[Finite, Field(ge=0)]], Field(min_length=1)]
    """The largest `|a - b| / max(1, |b|)` of each output, by `GRAPH/OUTPUT`."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        worst = max(self.errors, key=lambda output: self.errors[output])
        if self.errors[worst] > self.tolerance:
            raise ValueError(f"{worst} is off by {self.errors[worst]:g}; the tolerance is {self.tolerance:g}")
        return self


class Provenance(_Part):
    """Where the model came from."""

    config: dict[str, Any]
    """The training configuration, and the seed."""
    data: str
    """Where the rows came from."""
    data_sha256: str
    """The fingerprint of the rows."""
    train_rows: Count
    """How many rows were trained on."""
    held_out: dict[str, Finite]
    """Figures on rows that neither trained nor stopped it."""
    versions: dict[str, str]
    """The versions of what trained."""


class Manifest(_Part):
    """What manifest.json says of a bundle: what it takes, what it computes, and what proves that it is whole."""

    format_version: Literal[1]
    """The form of the bundle; a reader refuses one that it doesn't know."""
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    """The model's name; the version is the folder's name."""
    created: AwareDatetime
    """When the bundle was made."""
    signature: Signature
    """The inputs, raw, and a table's columns in the order of the tensors' columns."""
    masked: tuple[str, ...]
    """Columns that had one value in training: neither seen nor scored, whatever they hold."""
    latent_dim: Positive
    """The dimensions of the latent space."""
    likelihoods: Annotated[tuple[str, ...], Field(min_length=1)]
    """Of a table's numbers, binary columns and categories, as far as it has them, or of the pixels."""
    density: str
    """The values that densities, and so scores, are in nats of."""
    prior: Literal["standard_normal", "exemplars"]
    """p(z): a standard normal, or a mixture over the latent codes of training rows."""
    exemplars: Count
    """Of how many training rows the prior holds the latent codes; 0 for the standard normal."""
    members: Positive
    """How many models' bounds the scorer averages."""
    best_member: Count
    """Which of the members, from 0, encodes and decodes."""
    operators: dict[Graph, dict[str, Positive]]
    """How often each graph has which operator; one outside ONNX's own domain with its domain."""
    num_samples: Positive
    """How many noise points a score takes unless told otherwise; the calibration holds for so many."""
    false_positive_rate: Annotated[float, Field(ge=LEAST_RATE, lt=1)]
    """The share of normal rows that may be called anomalous unless told otherwise."""
    opset: Positive
    """The version of ONNX's operators that the graphs use."""
    files: dict[str, FileEntry]
    """Every other file of the bundle, by name."""
    parity: Parity
    """How well the graphs agree with the model that was trained."""
    calibration: CalibrationSummary
    """What turns a score into a p-value."""
    feature_baseline: tuple[Single, ...]
    """Each feature's mean negative log-likelihood on the calibration rows, nats."""
    training: Provenance
    """What trained the model, and on which rows."""
    exported_with: dict[str, str]
    """The versions of what exported."""
    derived_from: Sha256 | None
    """The hash of the manifest of the version whose graphs these are, where only the calibration is new."""

    @property
    def features(self) -> int:
        """How many features a row has: a table's columns, or an image's values."""
        return len(self.signature.columns) or math.prod(self.signature.inputs[0].shape[1:])

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        for problem in self._contradictions():
            raise ValueError(problem)
        return self

    def _contradictions(self) -> Iterator[str]:
        signature, rows = self.signature, self.calibration.rows
        names = [column.name for column in signature.columns]
        if not names and signature != Signature.image(signature.inputs[0].shape[1:]):  # type: ignore[arg-type]
            yield f"signature: {signature.inputs[0]} without columns; expected an image"
        if len(set(names)) < len(names):
            yield "signature: columns of the same name; expected each once"
        if not set(self.masked) <= set(names):
            yield f"masked: {', '.join(self.masked)}; expected names of columns"
        if set(self.files) != _FILES:
            yield f"files: {', '.join(sorted(self.files))}; expected {', '.join(sorted(_FILES))}"
        if len(self.feature_baseline) != self.features:
            yield f"feature_baseline: {len(self.feature_baseline)} entries; the signature has {self.features} features"
        if set(self.operators) != set(get_args(Graph)):
            yield f"operators: of {', '.join(self.operators) or 'no graph'}; expected of {', '.join(get_args(Graph))}"
        if (self.prior == "exemplars") != (self.exemplars > 0):
            yield f"exemplars: {self.exemplars} with the prior {self.prior}; expected some for exemplars alone"
        if self.best_member >= self.members:
            yield f"best_member: {self.best_member}, counted from 0; there are {self.members} members"
        if rows < rows_needed(self.false_positive_rate):
            yield (
                f"false_positive_rate: {self.false_positive_rate:g}; {rows} calibration rows support "
                f"{1 / (rows + 1):.3g} or more"
            )


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Return what a manifest says of `files`."""
    return {
        name: FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in sorted(files.items())
    }


def parse(path: Path, raw: bytes) -> Manifest:
    """Return the manifest of a file's bytes; raises BundleError, naming `path` and the field, if they are none."""
    try:
        return Manifest.model_validate_json(raw, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if where == "format_version" and first["type"] == "literal_error":
            raise BundleError(
                f"{path}: format_version {_short(repr(first['input']))}; this reader knows {FORMAT_VERSION}: upgrade "
                "vaeserve"
            ) from None
        raise BundleError(f"{path}: {_short(where + ': ' if where else '')}{_short(first['msg'])}") from None


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
