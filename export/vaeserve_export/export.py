"""From a run to a bundle: trace, measure parity, calibrate, draw the golden rows, write."""

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version as version_of
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vaeserve.bundle import Bundle
from vaeserve.errors import BundleError, ConfigError, RefusedError
from vaeserve.manifest import FORMAT_VERSION, NAME, Manifest, Parity, Provenance, entries
from vaeserve.signature import MISSING, Signature
from vaeserve.versions import refuse_version, write_version
from vaeserve_export.arrays import npy, npz
from vaeserve_export.calibration import calibrate, rate_for
from vaeserve_export.graphs import OPSET, trace
from vaeserve_export.operators import count_operators
from vaeserve_export.reference import Arrays, Reference, as_strings
from vaeserve_service.runtime import TOLERANCE, Runtime, output_error
from vaeserve_service.runtime import VERSION as ONNXRUNTIME_VERSION
from vaeserve_training.noise import sobol_normal
from vaeserve_training.prior import Exemplars
from vaeserve_training.run import Record, Run, library_versions
from vaeserve_training.vae import VAE

GOLDEN_ROWS = 8
PARITY_ROWS = 10_000


def export(
    run: Run,
    repository: Path,
    *,
    name: str,
    version: int | None = None,
    false_positive_rate: float | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Write `repository/name/version`, by default the next version; return the bundle.

    Raises RefusedError, writing nothing, if ONNX Runtime's outputs lie further than `TOLERANCE` from PyTorch's, or if
    a graph has an operator that isn't allowed; ConfigError for a name or rate that can't be; OperatorError for a
    version that exists.
    """
    folder = _folder(repository, name)
    refuse_version(folder, version)
    ensemble, signature = run.ensemble(), run.record.signature
    vae = ensemble.member
    calibration_rows, held_out = run.calibration(), run.test()[slice(PARITY_ROWS)].inputs
    rate_for(len(calibration_rows), false_positive_rate)  # before the work, if it is to be refused
    points = sobol_normal(vae.latent_dim, seed=run.record.seed, num_samples=ensemble.num_samples)
    noise = points[: ensemble.num_samples]

    say("tracing the graphs")
    traced = trace(ensemble, signature)
    graphs = {graph: model.SerializeToString() for graph, model in traced.items()}
    runtime, reference = Runtime(graphs), Reference(ensemble, signature)
    say("measuring parity with PyTorch")
    parity = _parity(runtime, reference, held_out, noise)
    golden = _golden(vae, signature, reference, noise, seed=run.record.seed)
    _check_golden(runtime, golden, noise)
    say("calibrating")
    calibrated = calibrate(runtime, calibration_rows.batches(), noise, data=f"{run.path}: calibration.npz")

    say("writing the bundle")
    files = {f"{graph}.onnx": content for graph, content in graphs.items()} | {
        "noise.npy": npy(points),
        "calibration.npy": npy(calibrated.scores),
        "golden.npz": npz(golden),
    }
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        name=name,
        created=datetime.now(UTC),
        signature=signature,
        masked=tuple(signature.columns[index].name for index in vae.features.constant),
        latent_dim=vae.latent_dim,
        likelihoods=vae.likelihoods,
        density=vae.density,
        prior="exemplars" if isinstance(vae.prior, Exemplars) else "standard_normal",
        exemplars=len(vae.prior.bias) if isinstance(vae.prior, Exemplars) else 0,
        members=len(ensemble),
        best_member=ensemble.best,
        operators={graph: count_operators(model) for graph, model in traced.items()},
        num_samples=ensemble.num_samples,
        false_positive_rate=rate_for(calibrated.scores.shape[1], false_positive_rate),
        opset=OPSET,
        files=entries(files),
        parity=parity,
        calibration=calibrated.summary(data=run.record.data, data_sha256=calibration_rows.sha256()),
        feature_baseline=tuple(calibrated.baseline.tolist()),
        training=_provenance(run.record),
        exported_with=_versions(),
        derived_from=None,
    )
    return write_version(folder, version, files, manifest)


def _check_golden(runtime: Runtime, golden: Arrays, noise: NDArray[np.float32]) -> None:
    """Raise RefusedError for golden rows that every later load would refuse."""
    try:
        runtime.check(golden, noise)
    except BundleError as error:
        raise RefusedError(str(error)) from None


def _provenance(record: Record) -> Provenance:
    return Provenance(
        config=record.config | {"seed": record.seed},
        data=record.data,
        data_sha256=record.data_sha256,
        train_rows=record.rows["train"],
        held_out=record.test,
        versions=record.versions,
    )


def _folder(repository: Path, name: str) -> Path:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name[:200]!r}: expected up to 128 letters, digits, '_' and '-', a letter or digit first"
        )
    return repository / name


def _parity(runtime: Runtime, reference: Reference, inputs: Arrays, noise: NDArray[np.float32]) -> Parity:
    """Compare every output of every graph on held-out rows; raises RefusedError beyond the tolerance."""
    posterior = runtime.encode(inputs)
    pairs = {
        "encoder": (posterior, reference.encode(inputs)),
        "decoder": (runtime.decode(posterior["mean"]), reference.decode(posterior["mean"])),
        "scorer": (runtime.score(inputs, noise), reference.score(inputs, noise)),
    }
    rows = len(posterior["mean"])
    errors = {}
    for graph, (computed, expected) in pairs.items():
        for output in expected:
            error = errors[f"{graph}/{output}"] = output_error(output, computed[output], expected[output], inputs)
            if not error <= TOLERANCE:
                raise RefusedError(
                    f"{graph}.onnx: {output} is off by {error:.2g} from PyTorch's on {rows} held-out rows; expected "
                    f"{TOLERANCE:g} at most"
                )
    return Parity(rows=rows, tolerance=TOLERANCE, errors=errors)


def _golden(vae: VAE, signature: Signature, reference: Reference, noise: NDArray[np.float32], *, seed: int) -> Arrays:
    """Return synthetic rows, drawn from the decoder, with what PyTorch gives for them; the last lack some values."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(GOLDEN_ROWS, vae.latent_dim, generator=generator)
    with torch.no_grad():
        rows = vae.features.inverse(vae.likelihood.sample(vae.decode(z), generator))
    inputs = as_strings({name: tensor.numpy() for name, tensor in rows.items()}, signature)
    if "numeric" in inputs:
        inputs["numeric"][-1, ::2] = np.nan
    if "categorical" in inputs:
        inputs["categorical"][-2, ::2] = MISSING
    outputs = {
        "encoder": reference.encode(inputs),
        "decoder": reference.decode(z.numpy()),
        "scorer": reference.score(inputs, noise),
    }
    return (
        {f"inputs/{name}": array for name, array in inputs.items()}
        | {"latents": z.numpy()}
        | {f"{graph}/{name}": array for graph, arrays in outputs.items() for name, array in arrays.items()}
    )


def _versions() -> dict[str, str]:
    return library_versions() | {
        "onnx": version_of("onnx"),
        "onnxscript": version_of("onnxscript"),
        "onnxruntime": ONNXRUNTIME_VERSION,
    }
