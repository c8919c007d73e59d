"""The bundle: one exported model version, a folder that says what it computes and proves that it is whole.

    NAME/VERSION/manifest.json, encoder.onnx, decoder.onnx, scorer.onnx, noise.npy, calibration.npy, golden.npz

This is the contract between who exports and who scores; it needs neither PyTorch nor ONNX Runtime.
"""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vaeserve.atomic import write_folder
from vaeserve.errors import BundleError, OperatorError
from vaeserve.scores import Bound, Calibration
from vaeserve.signature import Signature

FORMAT_VERSION = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")

_MANIFEST = "manifest.json"
_FILES = frozenset({"encoder.onnx", "decoder.onnx", "scorer.onnx", "noise.npy", "calibration.npy", "golden.npz"})
_LARGEST_MANIFEST = 64 * 2**20
_LARGEST_FILE = 2 * 2**30  # protobuf, and so ONNX, ends there

Graph = Literal["encoder", "decoder", "scorer"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(_Part):
    """A file of the bundle: its size in bytes and its SHA-256."""

    bytes: Annotated[int, Field(ge=0, le=_LARGEST_FILE)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class CalibrationSummary(_Part):
    """Which rows calibrated each bound, and quantiles of their scores.

    rows: those that could be scored; `unscorable` ones were left out.
    data, data_sha256: where they came from, and their fingerprint.
    quantiles: of the scores, nats, by bound and then by level.
    """

    rows: Annotated[int, Field(ge=1)]
    unscorable: Annotated[int, Field(ge=0)]
    data: str
    data_sha256: str
    quantiles: dict[Bound, dict[str, Finite]]


class Parity(_Part):
    """How far ONNX Runtime's outputs lie from a float64 PyTorch reference on held-out rows.

    errors: the largest `|a - b| / max(1, |b|)` of each output, `GRAPH/OUTPUT`.
    """

    rows: Annotated[int, Field(ge=1)]
    tolerance: Finite
    errors: dict[str, Finite]


class Provenance(_Part):
    """Where the model came from: its training configuration, its data and the versions of what trained it."""

    config: dict[str, Any]
    data: str
    data_sha256: str
    train_rows: int
    held_out: dict[str, Finite]
    versions: dict[str, str]


class Manifest(_Part):
    """What `manifest.json` says. Densities, and so scores, are in nats of the values that `density` names.

    likelihoods: of a table's numbers, binary columns and categories, as far as it has them, or of the pixels.
    exemplars: of how many training rows the prior holds the latent codes; 0 for the standard normal.
    members: how many models' bounds the scorer averages; `best_member` of them, from 0, encodes and decodes.
    operators: how often each graph has which operator; one outside ONNX's own domain with its domain.
    derived_from: the hash of the manifest of the version whose graphs these are, where only the calibration is new.
    """

    format_version: Literal[1]
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")]
    created: datetime
    signature: Signature
    latent_dim: Annotated[int, Field(ge=1)]
    likelihoods: Annotated[tuple[str, ...], Field(min_length=1)]
    density: str
    prior: Literal["standard_normal", "exemplars"]
    exemplars: Annotated[int, Field(ge=0)]
    members: Annotated[int, Field(ge=1)]
    best_member: Annotated[int, Field(ge=0)]
    operators: dict[Graph, dict[str, Annotated[int, Field(ge=1)]]]
    num_samples: Annotated[int, Field(ge=1)]
    false_positive_rate: Annotated[float, Field(gt=0, lt=1)]
    opset: Annotated[int, Field(ge=1)]
    files: dict[str, FileEntry]
    parity: Parity
    calibration: CalibrationSummary
    feature_baseline: tuple[Finite, ...]
    training: Provenance
    exported_with: dict[str, str]
    derived_from: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if set(self.files) != _FILES:
            raise ValueError(f"files: {', '.join(sorted(self.files))}; expected {', '.join(sorted(_FILES))}")
        if len(self.feature_baseline) != len(self.signature.features):
            raise ValueError(
                f"feature_baseline: {len(self.feature_baseline)} entries; the signature has "
                f"{len(self.signature.features)} features"
            )
        return self


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
            file = path / name
            if not file.is_file():
                raise BundleError(f"{file}: missing; the manifest lists it")
            if file.stat().st_size != entry.bytes:
                raise BundleError(f"{file}: {file.stat().st_size} bytes; the manifest says {entry.bytes}")
        return bundle

    @property
    def manifest_sha256(self) -> str:
        """The hash of manifest.json, which holds all the others."""
        return hashlib.sha256(self.manifest_json).hexdigest()

    @property
    def version(self) -> str:
        """The version, which is the folder's name; empty for a bundle outside a repository."""
        return self.path.name if VERSION.fullmatch(self.path.name) else ""

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises BundleError if they are not those that the manifest was written for.
        """
        entry = self.manifest.files[name]
        content = _read(self.path / name, entry.bytes, missing=f"{self.path / name}: missing; the manifest lists it")
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
        if len(scores) != len(Bound) or not (np.diff(scores, axis=1) >= 0).all():
            raise BundleError(
                f"{self.path / 'calibration.npy'}: shape {list(scores.shape)}; expected {len(Bound)} rows, ascending"
            )
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
            with np.load(io.BytesIO(self.read("golden.npz")), allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{self.path / 'golden.npz'}: not NumPy arrays: {error}") from None

    def _array(self, name: str, *, columns: int) -> NDArray[np.float32]:
        try:
            array = np.load(io.BytesIO(self.read(name)), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise BundleError(f"{self.path / name}: not a NumPy array: {error}") from None
        if array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != columns or not np.isfinite(array).all():
            raise BundleError(
                f"{self.path / name}: {array.dtype} of shape {list(array.shape)}; expected finite float32 of shape "
                f"[n, {columns}]"
            )
        single: NDArray[np.float32] = array
        return single


def _read(path: Path, largest: int, *, missing: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        raise BundleError(missing) from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from None
    if len(content) > largest:
        raise BundleError(f"{path}: more than {largest} bytes")
    return content


def _parse(path: Path, raw: bytes) -> Manifest:
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if where == "format_version" and first["type"] == "literal_error":
            raise BundleError(
                f"{path}: format_version {first['input']!r}; this reader knows {FORMAT_VERSION}: upgrade vaeserve"
            ) from None
        raise BundleError(f"{path}: {where + ': ' if where else ''}{first['msg']}") from None


def versions(repository: Path, name: str) -> list[int]:
    """Return the versions of a model in a repository, ascending."""
    folder = repository / name
    if not folder.is_dir():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if VERSION.fullmatch(entry.name) and entry.is_dir())


def models(repository: Path) -> Iterator[str]:
    """Yield the names of the models in a repository that have a version, sorted."""
    for entry in sorted(repository.iterdir()):
        if NAME.fullmatch(entry.name) and versions(repository, entry.name):
            yield entry.name


def write(target: Path, files: Mapping[str, bytes], manifest: Manifest) -> Bundle:
    """Write a bundle at `target`, all of it or nothing.

    Raises OperatorError if `target` exists, for a version never changes, or can't be written.
    """
    refuse_existing(target)
    try:
        # The manifest last: a folder without one is no bundle.
        write_folder(target, {**files, _MANIFEST: manifest.model_dump_json(indent=2).encode()})
    except OSError as error:
        raise OperatorError(f"{target}: {error.strerror}; nothing was written") from None
    return Bundle.open(target)


def refuse_existing(target: Path) -> None:
    """Raise OperatorError if there is something at `target`."""
    if target.exists():
        raise OperatorError(f"{target}: exists already, and a version never changes; choose another --version")


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Return what a manifest says of `files`."""
    return {
        name: FileEntry(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in sorted(files.items())
    }
