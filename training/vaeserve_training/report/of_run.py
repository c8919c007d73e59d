"""A run as the subject of a report: its modules in PyTorch, and the rows that it held out."""

import numpy as np
import torch
from numpy.typing import NDArray

from vaeserve.scores import Bound, Calibration, RowStatus
from vaeserve_training.data import Arrays, Dataset
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import ImageFeatures, tensors_of
from vaeserve_training.noise import sobol_normal
from vaeserve_training.report.architecture import Layer, Stack, layers_of
from vaeserve_training.report.subject import Subject, some_of
from vaeserve_training.report.words import counted, file_name, prior_words, settings, taken, versions
from vaeserve_training.run import Run
from vaeserve_training.vae import VAE

ROWS_AT_ONCE = 1024


class Modules:
    """An ensemble as what a report computes with; its best member encodes and decodes."""

    def __init__(self, ensemble: Ensemble, run: Run) -> None:
        self._ensemble = ensemble
        self._signature = run.record.signature
        points = sobol_normal(self.latent_dim, seed=run.record.seed, num_samples=ensemble.num_samples)
        self._noise = torch.tensor(points[: ensemble.num_samples])

    @property
    def latent_dim(self) -> int:
        """The dimensions of the latent space."""
        return self._ensemble.member.latent_dim

    def encode(self, inputs: Arrays) -> Arrays:
        """Return `mean` and `log_variance`, both [rows, latent]."""
        return self._in_chunks(inputs, self._encode)

    @torch.no_grad()
    def decode(self, z: NDArray[np.float32]) -> Arrays:
        """Return reconstructions in raw units, by input name, for `z` [rows, latent]."""
        vae = self._ensemble.member
        raw = vae.features.inverse(vae.likelihood.mean(vae.decode(torch.tensor(z))))
        arrays = {name: tensor.numpy() for name, tensor in raw.items()}
        if "categorical" in arrays:
            arrays["categorical"] = self._signature.categories(arrays["categorical"])
        return arrays

    def score(self, inputs: Arrays) -> Arrays:
        """Return the bounds, nats, and the status of rows, as the exported scorer would."""
        return self._in_chunks(inputs, self._score)

    def _encode(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        vae = self._ensemble.member
        return vae.encode(vae.features(inputs))._asdict()

    def _score(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self._ensemble.score(inputs, self._noise)._asdict() | {"status": self._ensemble.status(inputs)}

    @torch.no_grad()
    def _in_chunks(self, inputs: Arrays, compute) -> Arrays:  # type: ignore[no-untyped-def]
        rows = len(next(iter(inputs.values())))
        calls = []
        for start in range(0, rows, ROWS_AT_ONCE):
            some = {name: array[start : start + ROWS_AT_ONCE] for name, array in inputs.items()}
            calls.append(compute(tensors_of(self._signature, some)))
        return {name: torch.cat([call[name] for call in calls]).numpy() for name in calls[0]}


def subject_of(run: Run, rows: Dataset | None = None) -> Subject:
    """Return a run as a subject, shown on `rows` or else on those that it held out for the test."""
    record, ensemble = run.record, run.ensemble()
    model = Modules(ensemble, run)
    vae = ensemble.member
    columns = record.signature.columns
    return Subject(
        title=f"What a model learned of {file_name(record.data)}",
        lead="A variational autoencoder, seen by what it does with rows.",
        model=model,
        signature=record.signature,
        calibration=_calibration(model, run.calibration(), samples=ensemble.num_samples),
        data=_data(run),
        design=_design(ensemble),
        provenance={
            "run": run.path.name,
            "trained": f"{record.created:%Y-%m-%d %H:%M} UTC, seed {record.seed}",
            "model": settings(record.config.get("model", {})),
            "objective": settings(record.config.get("objective", {})),
            "optimizer": settings(record.config.get("optimizer", {})),
            "data, SHA-256": record.data_sha256,
            "versions": versions(record.versions),
        },
        architecture=stacks(vae),
        rows=some_of(run.test() if rows is None else rows),
        rows_name="rows held out for the test" if rows is None else rows.name,
        evaluations=run.evaluations(),
        held_out=record.test,
        prior=prior_words(vae.prior.name),
        best_step=int(record.best["step"]),
        masked=tuple(columns[index].name for index in vae.features.constant),
        absent={
            "parity with PyTorch": "Measured as a run becomes a bundle: vaeserve export, then a report of the bundle."
        },
    )


def stacks(vae: VAE) -> tuple[Stack, Stack]:
    """Return the layers of a model's encoder and decoder, drawn from the modules themselves."""
    features, latent = vae.features, vae.latent_dim
    row = torch.zeros(1, features.width, device=features.takes_noise.device)
    raw = features.shape if isinstance(features, ImageFeatures) else (features.count,)
    encoder = [
        Layer("pixels" if isinstance(features, ImageFeatures) else "columns, raw", raw),
        Layer("scaled, one-hot, with masks" if features.width != features.count else "scaled", (features.width,)),
        *layers_of(vae.encoder, row),
        Layer("mean and log-variance of q(z|x)", (2, latent)),
    ]
    z = "z = mean" if vae.point else "z = mean + sigma * noise"
    decoder = [
        Layer(z, (latent,)),
        *layers_of(vae.decoder, torch.zeros(1, latent, device=row.device)),
        Layer(f"p(x|z): {', '.join(vae.likelihoods).replace('_', ' ')}", (vae.likelihood.features,)),
    ]
    return Stack("encoder q(z|x)", encoder), Stack("decoder p(x|z)", decoder)


def _calibration(model: Modules, rows: Dataset, *, samples: int) -> Calibration:
    """Return what an export of the run would calibrate with."""
    parts = [model.score(inputs) for inputs in rows.batches()]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scored = outputs["status"] == RowStatus.OK
    return Calibration(
        scores={bound: np.sort(-outputs[bound.value][scored]) for bound in Bound},
        num_samples=samples,
        baseline=-outputs["feature_log_likelihood"][scored].mean(0),
        false_positive_rate=max(0.01, 1 / (int(scored.sum()) + 1)),
    )


def _data(run: Run) -> dict[str, str]:
    record = run.record
    parts = ", ".join(f"{rows:,} {part}" for part, rows in record.rows.items())
    return {"source": record.data, "rows": parts, **taken(record.signature)}


def _design(ensemble: Ensemble) -> dict[str, str]:
    vae = ensemble.member
    prior = prior_words(vae.prior.name)
    facts = {
        "latent space": counted(vae.latent_dim, "dimension"),
        "prior": "N(0, I) in training" + ("" if prior == "N(0, I)" else f"; rows are scored under {prior}"),
        "posterior": _posterior(vae),
        "likelihood": ", ".join(vae.likelihoods).replace("_", " "),
        "nats are of": vae.density,
        "numbers learned": f"{sum(parameter.numel() for parameter in ensemble.parameters()):,}",
    }
    if len(ensemble) > 1:
        best = f"{len(ensemble)} of one shape; drawn is number {ensemble.best}, counted from 0, which has the best"
        facts["members"] = f"{best} held-out bound, and encodes and decodes; a score is the mean of all"
    return facts


def _posterior(vae: VAE) -> str:
    if vae.point:
        return "a point, the mean alone: an autoencoder, whose score is no bound"
    said = "normal, independent dimensions"
    if vae.score_sigma:
        said += f"; rows are scored with a standard deviation of {vae.score_sigma:g} about its mean"
    return said
