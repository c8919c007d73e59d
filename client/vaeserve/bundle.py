"""The bundle: one exported model version, a folder that says what it computes and proves that it is whole.

    manifest.json, encoder.onnx, decoder.onnx, scorer.onnx, noise.npy, calibration.npy, golden.npz

This is the contract between who exports and who scores; it needs neither PyTorch nor ONNX Runtime.
"""

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from vaeserve.arrays import read_array, read_arrays
from vaeserve.atomic import write_folder
from vaeserve.errors import BundleError, OperatorError, first_line
from vaeserve.manifest import Graph, Manifest, parse
from vaeserve.scores import Bound, Calibration

MANIFEST = "manifest.json"
VERSION = re.compile(r"[1-9][0-9]{0,17}")

_LARGEST_MANIFEST = 64 * 2**20


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
        raw = _read(path / MANIFEST, _LARGEST_MANIFEST, missing=f"{path}: not a bundle: it has no {MANIFEST}")
        bundle = cls(path, parse(path / MANIFEST, raw), raw)
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


def write(target: Path, files: Mapping[str, bytes], manifest: Manifest) -> Bundle:
    """Write a bundle at `target`, all of it or nothing.

    Raises OperatorError if `target` exists, for a version never changes, or can't be written.
    """
    refuse_existing(target)
    try:
        # The manifest last: a folder without one is no bundle.
        write_folder(target, {**files, MANIFEST: manifest.model_dump_json(indent=2).encode()})
    except OSError as error:
        refuse_existing(target)  # another writer was faster
        raise OperatorError(f"{target}: {error.strerror}; nothing was written") from None
    return Bundle.open(target)


def refuse_existing(target: Path) -> None:
    """Raise OperatorError if there is something at `target`."""
    try:
        exists = target.exists()
    except OSError as error:
        raise OperatorError(f"{target}: {error.strerror}; expected a folder that can be read") from None
    if exists:
        raise OperatorError(f"{target}: exists already, and a version never changes; choose another --version")


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
