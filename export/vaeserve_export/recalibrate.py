"""A bundle's next version: the same graphs, calibrated anew on other rows. It takes no PyTorch."""

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from vaeserve.bundle import Bundle
from vaeserve.errors import ConfigError, DataError
from vaeserve.fingerprint import Fingerprint
from vaeserve.manifest import NAME, Manifest, entries
from vaeserve.reading import read
from vaeserve.signature import Signature
from vaeserve.source import Source
from vaeserve.versions import refuse_version, write_version
from vaeserve_export.arrays import npy
from vaeserve_export.calibration import calibrate, rate_for
from vaeserve_service.runtime import Arrays, Runtime


class NormalRows:
    """The normal rows of a source as a model's inputs, and what has been seen of it so far.

    count: rows of both kinds. anomalous: those among them that are labelled so, and set aside.
    """

    def __init__(self, source: Source, signature: Signature, *, label: str | None, normal: str | None) -> None:
        self.name = source.name
        self.count = 0
        self.anomalous = 0
        self._batches = read(source, signature, label=label, normal=normal)
        self._fingerprint = Fingerprint(signature)

    def __iter__(self) -> Iterator[Arrays]:
        for inputs, anomalous in self._batches:
            self._fingerprint.update(inputs)
            if anomalous is None:
                self.count += len(next(iter(inputs.values())))
                yield inputs
                continue
            self.count += len(anomalous)
            self.anomalous += int(anomalous.sum())
            if not anomalous.all():
                yield {name: array[~anomalous] for name, array in inputs.items()}

    @property
    def sha256(self) -> str:
        """The fingerprint of the rows so far."""
        return self._fingerprint.hexdigest()

    def refuse_trained_on(self, data_sha256: str) -> None:
        """Raise DataError if these are the rows of that fingerprint, which a model was trained on."""
        if data_sha256 == self.sha256:
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
    on_batch: Callable[[NormalRows], None] = lambda _: None,
) -> Bundle:
    """Write the next version of `bundle`, or `version`, beside it, calibrated on the rows of `source`; return it.

    Graphs, noise and golden rows keep their bytes. Rows that are labelled anomalous, as in training, are set aside,
    and those that can't be scored are counted in the manifest. Without a `false_positive_rate` the bundle's own is
    kept. `on_batch` is told what has been seen. Only whole sources of rows that were trained on are recognised, not
    some of their rows.

    Raises, with nothing written, ConfigError for a bundle outside a repository and for a version or a rate that can't
    be, with the rows that the rate takes; OperatorError for a version that exists; DataError for rows that don't fit
    the model or that it was trained on; RefusedError if no row can be scored; BundleError for a bundle that isn't
    whole.
    """
    folder = _folder(bundle)
    refuse_version(folder, version)
    manifest = bundle.manifest
    rate = manifest.false_positive_rate if false_positive_rate is None else false_positive_rate
    # Before the work, if it is to be refused: there are no more calibration rows than rows.
    rate_for(sys.maxsize if source.rows is None else source.rows, rate)
    runtime = Runtime.load(bundle)
    rows = NormalRows(source, manifest.signature, label=label, normal=normal)
    noise = bundle.noise[: manifest.num_samples]
    calibrated = calibrate(runtime, _told(rows, on_batch), noise, data=source.name)
    rows.refuse_trained_on(manifest.training.data_sha256)
    files = {name: bundle.read(name) for name in manifest.files} | {"calibration.npy": npy(calibrated.scores)}
    changed = {
        "created": datetime.now(UTC),
        "false_positive_rate": rate_for(calibrated.scores.shape[1], rate),
        "files": entries(files),
        "calibration": calibrated.summary(data=source.name, data_sha256=rows.sha256),
        "feature_baseline": tuple(calibrated.baseline.tolist()),
        "derived_from": bundle.manifest_sha256,
    }
    return write_version(folder, version, files, Manifest.model_validate(dict(manifest) | changed))


def _told(rows: NormalRows, on_batch: Callable[[NormalRows], None]) -> Iterator[Arrays]:
    for inputs in rows:
        yield inputs
        on_batch(rows)


def _folder(bundle: Bundle) -> Path:
    """Return the folder of a bundle's model, which holds its versions; raises ConfigError where there is none."""
    folder = bundle.path.absolute().parent
    if not (bundle.version and NAME.fullmatch(folder.name)):
        raise ConfigError(
            f"{bundle.path}: outside a repository, so there is no next version; expected NAME/VERSION, a version of 1 "
            "or more"
        )
    return folder
