"""How well a trained model explains normal rows, and how well it tells anomalous ones from them."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from vaeserve.errors import DataError
from vaeserve_training.collapse import usage
from vaeserve_training.data import Dataset
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.features import tensors_of
from vaeserve_training.noise import sobol_normal
from vaeserve_training.prior import Exemplars
from vaeserve_training.randomness import generator_of
from vaeserve_training.vae import VAE

# Noise points of the ELBO, in pairs of opposite ones; a score has the model's own number.
SAMPLES = 8
ROWS_AT_ONCE = 4096
# How many numbers an estimate of many samples holds at once.
NUMBERS_AT_ONCE = 2**24


@torch.no_grad()
def evaluate_rows(ensemble: Ensemble, dataset: Dataset, *, seed: int = 0) -> dict[str, float]:
    """Return means over the normal rows, in nats, and how the best member uses its latents.

    `elbo`, `log_likelihood` and `kl` are with the encoder's posterior; `score` is what rows are scored by. Where there
    are rows of both kinds, also `auroc` and `average_precision` of the score. Rows that can't be scored are left out,
    and counted as `unscorable`. Raises DataError if no normal row is left.
    """
    vae = ensemble.member
    generator = generator_of(torch.device("cpu"), seed)
    points = torch.tensor(sobol_normal(vae.latent_dim, seed=seed, num_samples=ensemble.num_samples))
    points = points[: ensemble.num_samples]  # as an export takes them
    chunks = []
    for inputs in _chunks(dataset, _rows_at_once(vae, SAMPLES)):
        # Points of each row's own: the error of shared ones wouldn't average out over the rows.
        rows = len(next(iter(inputs.values())))
        some = ensemble.bounds(inputs, antithetic(SAMPLES, rows, vae.latent_dim, generator=generator).transpose(0, 1))
        chunks.append(torch.stack([some.elbo, some.log_likelihood, some.kl, -ensemble.score(inputs, points).elbo]))
    scorable = scorable_rows(ensemble, dataset)
    anomalous = np.zeros(len(dataset), bool) if dataset.anomalous is None else dataset.anomalous
    normal = scorable & ~anomalous
    if not normal.any():
        raise DataError(f"{dataset.name}: none of its {len(dataset)} rows is normal and can be scored; expected one")
    parts = torch.cat(chunks, dim=1).double().numpy()  # (figures, rows)
    figures = dict(zip(("elbo", "log_likelihood", "kl", "score"), parts[:, normal].mean(1).tolist(), strict=True))
    if not vae.point:
        inputs = next(_chunks(dataset[np.flatnonzero(normal)[:ROWS_AT_ONCE]], ROWS_AT_ONCE))
        posterior = vae.encode(vae.features(inputs))
        measured = usage(posterior, torch.randn(posterior.mean.shape, generator=generator))
        figures |= {"active_units": measured.active_units, "mutual_information": measured.mutual_information}
    if not scorable.all():
        figures["unscorable"] = int((~scorable).sum())
    return figures | detection(parts[-1, scorable], anomalous[scorable])


@torch.no_grad()
def estimate_log_likelihood(
    ensemble: Ensemble, dataset: Dataset, *, samples: int, seed: int = 0
) -> tuple[float, float]:
    """Return the mean IWAE bound of the rows with `samples` fresh noise points each, and its standard error, nats.

    The bound tends to log p(x) as the samples grow. Source: Burda, Grosse and Salakhutdinov, 2016, theorem 1.
    """
    vae = ensemble.member
    generator = generator_of(torch.device("cpu"), seed, samples)
    iwae = []
    for inputs in _chunks(dataset, _rows_at_once(vae, samples)):
        rows = len(next(iter(inputs.values())))
        noise = torch.randn(rows, samples, vae.latent_dim, generator=generator)
        iwae.append(ensemble.bounds(inputs, noise).iwae)
    values = torch.cat(iwae).double()
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.inf
    return float(values.mean()), error


def _rows_at_once(vae: VAE, samples: int) -> int:
    """Return how many rows make tensors of about `NUMBERS_AT_ONCE`, with so many samples each."""
    exemplars = vae.prior.bias.numel() if isinstance(vae.prior, Exemplars) else 0
    convolved = [p.shape[0] * vae.features.count for p in vae.parameters() if p.ndim == 4]
    widest = max(exemplars, vae.likelihood.outputs, *(p.shape[0] for p in vae.parameters()), *convolved)
    return max(1, min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // (samples * widest)))


def scorable_rows(ensemble: Ensemble, dataset: Dataset) -> NDArray[np.bool_]:
    """Return which rows the model can take."""
    status = torch.cat([ensemble.status(inputs) for inputs in _chunks(dataset, ROWS_AT_ONCE)])
    scorable: NDArray[np.bool_] = (status == 0).numpy()
    return scorable


def antithetic(samples: int, *shape: int, generator: torch.Generator) -> Tensor:
    """Return standard-normal points [samples, *shape], every other one the opposite of the one before."""
    half = torch.randn(-(-samples // 2), *shape, generator=generator)
    return torch.stack([half, -half], dim=1).reshape(-1, *shape)[:samples]


def detection(scores: NDArray[np.floating], anomalous: NDArray[np.bool_]) -> dict[str, float]:
    """Return how well `scores` rank the anomalous rows first; nothing where all rows are of one kind."""
    if anomalous.all() or not anomalous.any():
        return {}
    return {
        "auroc": float(roc_auc_score(anomalous, scores)),
        "average_precision": float(average_precision_score(anomalous, scores)),
    }


def _chunks(dataset: Dataset, rows: int) -> Iterator[dict[str, Tensor]]:
    for start in range(0, len(dataset), rows):
        some = np.arange(start, min(start + rows, len(dataset)))
        yield tensors_of(dataset.signature, dataset.take(some))
