"""The bundle: one exported model version, a folder that says what it computes and proves that it is whole.

    NAME/VERSION/manifest.json, encoder.onnx, decoder.onnx, scorer.onnx, noise.npy, calibration.npy, golden.npz

This is the contract between who exports and who scores; it needs neither PyTorch nor ONNX Runtime.
"""

import hashlib
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from vaeserve.arrays import read_array, read_arrays
from vaeserve.atomic import write_folder
from vaeserve.errors import BundleError, ConfigError, OperatorError, first_line
from vaeserve.scores import LEAST_RATE, Bound, Calibration, rows_needed
from vaeserve.signature import Signature

FORMAT_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")

_MANIFEST = "manifest.json"
_FILES = frozenset({"encoder.onnx", "decoder.onnx", "scorer.onnx", "noise.npy", "calibration.npy", "golden.npz"})
_LARGEST_MANIFEST = 64 * 2**20
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


class CalibrationSummary(_Part):
    """Which rows calibrated each bound, and quantiles of their scores."""

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


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk; every file is checked against its hash as it is read."""

    path: Path
    manifest: Manifest
    manifest_json: bytes

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the bundle at `path`: read its manifest and see that every file is there in its full size.

        Raises BundleError, naming the file, if it isn't a whole bundle of a format that this reader knows.
        """
        path = Path(path)
        raw = _read(path / _MANIFEST, _LARGEST_MANIFEST, missing=f"{path}: not a bundle: it has no {_MANIFEST}")
        bundle = cls(path, _parse(path / _MANIFEST, raw), raw)
        for name, entry in bundle.manifest.files.items():
            size = _stat(path / name, missing=_listed(path / name)).st_size
            if size != entry.bytes:
                raise BundleError(f"{path / name}: {size} bytes; the manifest says {entry.bytes}")
        return bundle

    @property
    def manifest_sha256(self) -> str:
        """The hash of manifest.json, which holds all the others."""
        return hashlib.sha256(self.manifest_json).hexdigest()

    @property
    def version(self) -> str:
        """The version, which is the name of the folder, or of what it links to; empty outside a repository."""
        names = (self.path.absolute().name, self.path.resolve().name)
        return next((name for name in names if VERSION.fullmatch(name)), "")

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises BundleError if they are not those that the manifest was written for.
        """
        entry = self.manifest.files[name]
        content = _read(self.path / name, entry.bytes, missing=_listed(self.path / name))
        digest = hashlib.sha256(content).hexdigest()
        if digest != entry.sha256:
            raise BundleError(f"{self.path / name}: SHA-256 {digest}; the manifest says {entry.sha256}")
        return content

    def graph(self, name: Graph) -> bytes:
        """Return an ONNX graph, serialized."""
        return self.read(f"{name}.onnx")

    @cached_property
    def noise(self) -> NDArray[np.float32]:
        """The fixed standard-normal points, `[points, latent]`."""
        noise = self._array("noise.npy", columns=self.manifest.latent_dim)
        if len(noise) < self.manifest.num_samples:
            raise BundleError(
                f"{self.path / 'noise.npy'}: {len(noise)} points; num_samples is {self.manifest.num_samples}"
            )
        return noise

    @cached_property
    def calibration(self) -> Calibration:
        """The held-out scores and what they decide."""
        scores = self._array("calibration.npy", columns=self.manifest.calibration.rows)
        file = self.path / "calibration.npy"
        if len(scores) != len(Bound):
            raise BundleError(f"{file}: shape {list(scores.shape)}; expected {len(Bound)} rows, one for each bound")
        if not (np.diff(scores, axis=1) >= 0).all():
            raise BundleError(f"{file}: scores that are out of order; expected ascending ones in each row")
        return Calibration(
            scores=dict(zip(Bound, scores, strict=True)),
            num_samples=self.manifest.num_samples,
            baseline=np.asarray(self.manifest.feature_baseline, np.float32),
            false_positive_rate=self.manifest.false_positive_rate,
        )

    @cached_property
    def golden(self) -> dict[str, NDArray[Any]]:
        """A few synthetic rows: `inputs/NAME`, `latents` for the decoder, and what PyTorch gave, `GRAPH/NAME`."""
        try:
            return read_arrays(self.read("golden.npz"))
        except ValueError as error:
            raise BundleError(f"{self.path / 'golden.npz'}: not NumPy arrays: {error}") from None

    def _array(self, name: str, *, columns: int) -> NDArray[np.float32]:
        try:
            array = read_array(self.read(name))
        except ValueError as error:
            raise BundleError(f"{self.path / name}: not a NumPy array: {error}") from None
        if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != columns or not np.isfinite(array).all():
            raise BundleError(
                f"{self.path / name}: {array.dtype} of shape {list(array.shape)}; expected finite float32 of shape "
                f"[n, {columns}]"
            )
        single: NDArray[np.float32] = array
        return single


def _listed(path: Path) -> str:
    return f"{path}: missing; the manifest lists it"


def _stat(path: Path, *, missing: str) -> os.stat_result:
    """Return a regular file's status; raises BundleError for anything else, and for a link that leaves the folder.

    Links within the folder are how Kubernetes mounts files; the folder itself may be one too.
    """
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except FileNotFoundError:
        raise BundleError(missing) from None
    except (OSError, RuntimeError) as error:  # before Python 3.13, a link to itself is a RuntimeError
        raise BundleError(f"{path}: {getattr(error, 'strerror', None) or first_line(error)}") from None
    if not real.is_relative_to(path.parent.resolve()):
        raise BundleError(f"{path}: a link to {real}; expected a file of the bundle's folder")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path}: {stat.filemode(status.st_mode)}; expected a regular file")
    return status


def _read(path: Path, largest: int, *, missing: str) -> bytes:
    _stat(path, missing=missing)
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    if len(content) > largest:
        raise BundleError(f"{path}: more than {largest} bytes")
    return content


def _open_at_once(name: str, flags: int) -> int:
    # Should a pipe have taken the file's place by now, this doesn't wait for a writer. Windows has no such pipes.
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _parse(path: Path, raw: bytes) -> Manifest:
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


def versions(repository: Path, name: str) -> list[int]:
    """Return the versions of a model in a repository, ascending: the folders with a manifest.

    Raises OperatorError for a folder that can't be read.
    """
    folder = repository / name
    with _readable(folder):
        numbers = [int(entry.name) for entry in _entries(folder) if VERSION.fullmatch(entry.name)]
        return sorted(number for number in numbers if (folder / str(number) / _MANIFEST).exists())


def models(repository: Path) -> Iterator[str]:
    """Yield the names of the models in a repository that have a version, sorted; raises as `versions` does."""
    with _readable(repository):
        names = sorted(entry.name for entry in _entries(repository) if NAME.fullmatch(entry.name))
    return (name for name in names if versions(repository, name))


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperatorError(f"{folder}: {error.strerror}; expected a folder that can be read") from None


def refuse_version(folder: Path, version: int | None) -> None:
    """Raise ConfigError for a version that can't be, OperatorError for one that `folder` has; None is the next one."""
    if version is None:
        return
    if not VERSION.fullmatch(str(version)):
        raise ConfigError(f"--version {version}: expected a whole number from 1, of 18 digits at most")
    refuse_existing(folder / str(version))


def write_version(folder: Path, version: int | None, files: Mapping[str, bytes], manifest: Manifest) -> Bundle:
    """Write a bundle as `version` in the folder of its model, or as the next one; raises as `write` does."""
    refuse_version(folder, version)
    if version is not None:
        return write(folder / str(version), files, manifest)
    while True:
        with _readable(folder):
            taken = [int(entry.name) for entry in _entries(folder) if VERSION.fullmatch(entry.name)]
        target = folder / str(max(taken, default=0) + 1)
        try:
            return write(target, files, manifest)
        except OperatorError:
            if not target.exists():  # or another writer was faster, and took this number
                raise


def write(target: Path, files: Mapping[str, bytes], manifest: Manifest) -> Bundle:
    """Write a bundle at `target`, all of it or nothing.

    Raises OperatorError if `target` exists, for a version never changes, or can't be written.
    """
    refuse_existing(target)
    try:
        # The manifest last: a folder without one is no bundle.
        write_folder(target, {**files, _MANIFEST: manifest.model_dump_json(indent=2).encode()})
    except OSError as error:
        refuse_existing(target)  # another writer was faster
        raise OperatorError(f"{target}: {error.strerror}; nothing was written") from None
    return Bundle.open(target)


def refuse_existing(target: Path) -> None:
    """Raise OperatorError if there is something at `target`."""
    with _readable(target):
        exists = target.exists()
    if exists:
        raise OperatorError(f"{target}: exists already, and a version never changes; choose another --version")


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Return what a manifest says of `files`."""
    return {
        name: FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in sorted(files.items())
    }
