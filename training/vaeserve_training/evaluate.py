"""How well a trained model tells anomalous rows from normal ones, and how well it explains the normal ones."""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from vaeserve_training.data import Dataset
from vaeserve_training.objective import bounds
from vaeserve_training.vae import VAE

SAMPLES = 8
ROWS_AT_ONCE = 4096


@torch.no_grad()
def evaluate(vae: VAE, dataset: Dataset, *, seed: int = 0) -> dict[str, float]:
    """Return means over the normal rows of `elbo`, `log_likelihood` and `kl`, in nats.

    Where there are rows of both kinds, also `auroc` and `average_precision` of minus the ELBO.
    """
    noise = torch.randn(SAMPLES, vae.latent_dim, generator=torch.Generator().manual_seed(seed))
    parts = []
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        inputs = {name: torch.tensor(a[start : start + ROWS_AT_ONCE]) for name, a in dataset.inputs.items()}
        some = bounds(vae, vae.features(inputs), noise)
        parts.append(torch.stack([some.elbo, some.log_likelihood, some.kl]))
    elbo, log_likelihood, kl = torch.cat(parts, dim=1).double().numpy()
    anomalous = np.zeros(len(dataset), bool) if dataset.anomalous is None else dataset.anomalous
    figures = {
        "elbo": float(elbo[~anomalous].mean()),
        "log_likelihood": float(log_likelihood[~anomalous].mean()),
        "kl": float(kl[~anomalous].mean()),
    }
    return figures | detection(-elbo, anomalous)


def detection(scores: NDArray[np.floating], anomalous: NDArray[np.bool_]) -> dict[str, float]:
    """Return how well `scores` rank the anomalous rows first; nothing where all rows are of one kind."""
    if anomalous.all() or not anomalous.any():
        return {}
    return {
        "auroc": float(roc_auc_score(anomalous, scores)),
        "average_precision": float(average_precision_score(anomalous, scores)),
    }
