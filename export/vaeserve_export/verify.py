"""Whether a bundle is what it says and keeps what it promises; this takes neither PyTorch nor any data."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from vaeserve.bundle import Bundle
from vaeserve.errors import BundleError, ConfigError, InternalError, RefusedError
from vaeserve.graph import refuse_unsafe
from vaeserve.scores import Bound, RowStatus
from vaeserve_export import promises, trials
from vaeserve_export.operators import check_operators, count_operators
from vaeserve_export.structure import checked
from vaeserve_service.runtime import GRAPHS, PROVIDERS, Arrays, Device, Runtime, provider_of

# How far moments of the noise may lie from a standard normal's, in standard errors of as many random points.
_STANDARD_ERRORS = 5
# Besides the bundle's own number: one, and more than ONNX Runtime sums in one go.
_SAMPLES = (1, 9)


@dataclass(frozen=True)
class Check:
    """A check: what it found, or what is wrong; `seconds` is how long it took."""

    name: str
    passed: bool
    detail: str
    seconds: float


@dataclass(frozen=True)
class Verification:
    """The checks of a bundle, the last of which may not have passed."""

    bundle: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether the bundle passed them all."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        checks = [asdict(check) for check in self.checks]
        return {"bundle": self.bundle, "verdict": "passed" if self.passed else "failed", "checks": checks}


def verify(path: Path, *, device: str = "cpu", say: Callable[[Check], None] = lambda _: None) -> Verification:
    """Check the bundle at `path`, up to the first thing that is wrong, and `say` each check as it is done.

    Raises ConfigError where there is nothing at `path`, or the device isn't there.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder; expected a bundle")
    subject, checks = _Subject(path, _device(device)), []
    for name, check in CHECKS.items():
        start = time.perf_counter()
        try:
            passed, detail = True, check(subject)
        except (BundleError, InternalError, RefusedError) as error:
            passed, detail = False, str(error)
        checks.append(Check(name, passed, detail, round(time.perf_counter() - start, 3)))
        say(checks[-1])
        if not passed:
            break
    return Verification(str(path), tuple(checks))


def _device(name: str) -> Device:
    for device in get_args(Device):
        if name == device:
            provider_of(device)
            return device  # type: ignore[no-any-return]
    raise ConfigError(f"--device {name}: expected {' or '.join(PROVIDERS)}")


@dataclass(frozen=True)
class _Subject:
    """What is checked, as far as it could be opened."""

    path: Path
    device: Device

    @cached_property
    def bundle(self) -> Bundle:
        return Bundle.open(self.path)

    @cached_property
    def runtime(self) -> Runtime:
        return self.fresh_runtime()

    def fresh_runtime(self) -> Runtime:
        return Runtime({name: self.bundle.graph(name) for name in GRAPHS}, device=self.device)

    @cached_property
    def rows(self) -> Arrays:
        return trials.trial_rows(self.bundle.golden, self.bundle.manifest.signature)

    def outputs(self, rows: Arrays) -> Arrays:
        return promises.outputs_of(self.runtime, rows, self.bundle.noise[: self.bundle.manifest.num_samples])


def _manifest(subject: _Subject) -> str:
    manifest = subject.bundle.manifest
    return f"{manifest.name}, format {manifest.format_version}"


def _files(subject: _Subject) -> str:
    files = subject.bundle.manifest.files
    size = sum(len(subject.bundle.read(name)) for name in files)
    return f"{len(files)} files of {size} bytes have their SHA-256"


def _graphs(subject: _Subject) -> str:
    manifest = subject.bundle.manifest
    for name in GRAPHS:
        content = subject.bundle.graph(name)
        refuse_unsafe(content, name)
        try:
            model = checked(onnx.load_model_from_string(content), name)
        except DecodeError:
            raise RefusedError(f"{name}.onnx: not an ONNX graph") from None
        opset = next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), 0)
        if opset != manifest.opset:
            raise RefusedError(f"{name}.onnx: opset {opset}; the manifest says {manifest.opset}")
        check_operators(model, name)
        _refuse_other_counts(name, count_operators(model), manifest.operators[name])
    subject.runtime.check_interface(manifest)
    return f"well formed, opset {manifest.opset}, {_total(manifest.operators)} operators, all allowed"


def _refuse_other_counts(name: str, counted: dict[str, int], said: dict[str, int]) -> None:
    for operator in sorted({*counted, *said}):
        if counted.get(operator, 0) != said.get(operator, 0):
            raise RefusedError(
                f"{name}.onnx: {counted.get(operator, 0)} x {operator}; the manifest says {said.get(operator, 0)}"
            )


def _total(operators: Any) -> int:
    return sum(sum(counts.values()) for counts in operators.values())


def _calibration(subject: _Subject) -> str:
    summary, calibration = subject.bundle.manifest.calibration, subject.bundle.calibration
    for bound in Bound:
        for level, said in summary.quantiles[bound].items():
            found = float(np.quantile(calibration.scores[bound], float(level)))
            if not math.isclose(found, said, rel_tol=1e-5, abs_tol=1e-5):
                raise RefusedError(
                    f"calibration.npy: the {bound.value} scores' quantile {level} is {found:.9g}; the manifest says "
                    f"{said:.9g}"
                )
    return f"{calibration.rows} rows, which support a rate of {1 / (calibration.rows + 1):.3g} or more"


def _noise(subject: _Subject) -> str:
    noise = subject.bundle.noise.astype(np.float64)
    points = len(noise)
    moments = {"mean": (noise.mean(0), 0.0, 1.0), "variance": (noise.var(0), 1.0, 2.0)}
    for name, (found, expected, variance) in moments.items():
        apart = np.abs(found - expected)
        if apart.max() > _STANDARD_ERRORS * math.sqrt(variance / points):
            worst = int(apart.argmax())
            raise RefusedError(
                f"noise.npy: {name} {found[worst]:.3g} in dimension {worst}; expected about {expected:g}, as of a "
                "standard normal"
            )
    return f"{points} points, standard normal as far as {points} can be"


def _golden(subject: _Subject) -> str:
    Runtime.load(subject.bundle, device=subject.device)
    statuses = subject.bundle.golden["scorer/status"]
    scored = int((statuses == RowStatus.OK).sum())
    if not scored:
        raise RefusedError(f"golden.npz: none of its {len(statuses)} rows can be scored; expected one or more")
    return f"{len(statuses)} rows on {PROVIDERS[subject.device]}, {scored} of them scored, are what PyTorch gave"


def _steady(subject: _Subject) -> str:
    again = subject.fresh_runtime()
    for noise in _noises(subject):
        promises.refuse_unsteady(subject.runtime, again, subject.rows, noise)
    return f"{trials.ROWS} rows have the same bits run after run, and in other sessions"


def _batches(subject: _Subject) -> str:
    if subject.device != "cpu":
        return f"not promised on {subject.device}"
    for noise in _noises(subject):
        promises.refuse_batch_dependent(subject.runtime, subject.rows, noise)
        promises.refuse_thread_dependent(subject.runtime, subject.rows, noise)
    return f"the same bits alone, in batches of {promises.BATCH_SIZES[0]} to {trials.ROWS}, and on several threads"


def _noises(subject: _Subject) -> Iterator[Any]:
    points = subject.bundle.noise
    for samples in sorted({subject.bundle.manifest.num_samples, *_SAMPLES}):
        if samples <= len(points):
            yield points[:samples]


def _parts(subject: _Subject) -> str:
    promises.refuse_loose_parts(subject.outputs(subject.rows))
    return f"to {promises.ROUNDING:g} of their magnitudes"


def _finite(subject: _Subject) -> str:
    promises.refuse_not_finite(subject.outputs(subject.rows))
    promises.refuse_not_finite(subject.outputs(trials.extreme_rows(subject.rows)))
    return "for finite rows, huge and tiny ones too"


def _unscorable(subject: _Subject) -> str:
    manifest = subject.bundle.manifest
    spoiled, statuses = trials.spoiled_rows(subject.rows, manifest.signature, manifest.masked)
    outputs, clean = subject.outputs(spoiled), subject.outputs(subject.rows)
    promises.refuse_wrong_status(outputs, statuses)
    whole = np.array([row for row, status in enumerate(statuses) if status == {RowStatus.OK}])
    promises.refuse_harm(promises.some(outputs, whole), promises.some(clean, whole), exactly=subject.device == "cpu")
    return "have their status and no numbers, and change no other row"


CHECKS: dict[str, Callable[[_Subject], str]] = {
    "manifest": _manifest,
    "files": _files,
    "graphs": _graphs,
    "calibration": _calibration,
    "noise": _noise,
    "golden rows": _golden,
    "same bits each time": _steady,
    "same bits in any batch": _batches,
    "parts add up": _parts,
    "finite scores": _finite,
    "unscorable rows": _unscorable,
}
