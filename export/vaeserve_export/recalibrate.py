"""A bundle's next version: the same graphs, calibrated anew on other rows. It takes no PyTorch."""

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from vaeserve.bundle import NAME, VERSION, Bundle, Manifest, entries, refuse_existing, versions, write
from vaeserve.errors import ConfigError, DataError
from vaeserve.fingerprint import Fingerprint
from vaeserve.reading import read
from vaeserve.scores import rows_needed
from vaeserve.signature import Signature
from vaeserve.source import Source
from vaeserve_export.arrays import npy
from vaeserve_export.calibration import calibrate, rate_for
from vaeserve_service.runtime import Arrays, Runtime


class Rows:
    """The normal rows of a source as a model's inputs, and what has been seen of it so far.

    count: rows of both kinds. anomalous: those among them that are labelled so, and set aside.
    """

    def __init__(self, source: Source, signature: Signature, *, label: str | None, normal: str | None) -> None:
        self.name = source.name
        self.count = 0
        self.anomalous = 0
        self._batches = read(source, signature, label=label, normal=normal)
        # A model may have been trained on these rows with their labels or without.
        self._labelled, self._plain = Fingerprint(signature), Fingerprint(signature)

    def __iter__(self) -> Iterator[Arrays]:
        for inputs, anomalous in self._batches:
            self._labelled.update(inputs, anomalous)
            if anomalous is None:
                self.count += len(next(iter(inputs.values())))
                yield inputs
                continue
            self._plain.update(inputs)
            self.count += len(anomalous)
            self.anomalous += int(anomalous.sum())
            if not anomalous.all():
                yield {name: array[~anomalous] for name, array in inputs.items()}

    @property
    def sha256(self) -> str:
        """The fingerprint of the rows so far, and of their labels."""
        return self._labelled.hexdigest()

    def refuse_trained_on(self, data_sha256: str) -> None:
        """Raise DataError if these are the rows of that fingerprint, which a model was trained on."""
        if data_sha256 in (self.sha256, self._plain.hexdigest()):
            raise DataError(
                f"{self.name}: the rows that the model was trained on (SHA-256 {data_sha256[:16]}...); expected rows "
                "that neither trained nor stopped it, for on its own p-values promise nothing"
            )


def recalibrate(
    bundle: Bundle,
    source: Source,
    *,
    label: str | None = None,
    normal: str | None = None,
    version: int | None = None,
    false_positive_rate: float | None = None,
    on_batch: Callable[[Rows], None] = lambda _: None,
) -> Bundle:
    """Write the next version of `bundle`, or `version`, beside it, calibrated on the rows of `source`; return it.

    Graphs, noise and golden rows keep their bytes. Rows that are labelled anomalous, as in training, are set aside,
    and those that can't be scored are counted in the manifest. Without a `false_positive_rate` the bundle's own is
    kept where the rows support it, or else it is the least usual one that they support. `on_batch` is told what has
    been seen. Only whole sources of rows that were trained on are recognised, not some of their rows.

    Raises, with nothing written, ConfigError for a bundle outside a repository and for a version or a rate that can't
    be, with the rows that the rate takes; OperatorError for a version that exists; DataError for rows that don't fit
    the model or that it was trained on; RefusedError if no row can be scored; BundleError for a bundle that isn't
    whole.
    """
    target = _target(bundle, version)
    # Before the work, if it is to be refused: there are no more calibration rows than rows.
    rate_for(sys.maxsize if source.rows is None else source.rows, false_positive_rate)
    manifest = bundle.manifest
    runtime = Runtime.load(bundle)
    rows = Rows(source, manifest.signature, label=label, normal=normal)
    noise = bundle.noise[: manifest.num_samples]
    calibrated = calibrate(runtime, _told(rows, on_batch), noise, data=source.name)
    rows.refuse_trained_on(manifest.training.data_sha256)
    files = {name: bundle.read(name) for name in manifest.files} | {"calibration.npy": npy(calibrated.scores)}
    changed = {
        "created": datetime.now(UTC),
        "false_positive_rate": _rate(calibrated.scores.shape[1], false_positive_rate, before=manifest),
        "files": entries(files),
        "calibration": calibrated.summary(data=source.name, data_sha256=rows.sha256),
        "feature_baseline": tuple(calibrated.baseline.tolist()),
        "derived_from": bundle.manifest_sha256,
    }
    return write(target, files, Manifest.model_validate(dict(manifest) | changed))


def _told(rows: Rows, on_batch: Callable[[Rows], None]) -> Iterator[Arrays]:
    for inputs in rows:
        yield inputs
        on_batch(rows)


def _target(bundle: Bundle, version: int | None) -> Path:
    path = bundle.path if bundle.version else bundle.path.absolute()  # "." has no name
    name, repository = path.absolute().parent.name, path.absolute().parent.parent
    if not (VERSION.fullmatch(path.name) and NAME.fullmatch(name)):
        raise ConfigError(
            f"{path}: outside a repository, so there is no next version; expected NAME/VERSION, a version of 1 or more"
        )
    if version is None:
        version = max(versions(repository, name)) + 1
    if not VERSION.fullmatch(str(version)):
        raise ConfigError(f"--version {version}: expected a whole number from 1")
    target = path.parent / str(version)
    refuse_existing(target)
    return target


def _rate(rows: int, asked: float | None, *, before: Manifest) -> float:
    if asked is None and rows >= rows_needed(before.false_positive_rate):
        return before.false_positive_rate
    return rate_for(rows, asked)
