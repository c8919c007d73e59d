"""How likely a model finds binarised MNIST: the ELBO and IWAE-5000 of test rows, in nats.

Binarised by sampling each pixel with its grey level as the probability: training rows anew each time, test and
validation rows once, from a fixed seed. The last 10,000 training images are the validation rows.
"""

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import pictures
from benchmarks.settings import add_overrides, settings
from benchmarks.trial import attempt, threads, timed
from vaeserve_training.data import Dataset, Split
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.evaluate import estimate_log_likelihood
from vaeserve_training.features import tensors_of
from vaeserve_training.randomness import generator_of

SEED = 0
VALIDATION_ROWS = 10_000
ELBO_SAMPLES = 8
IWAE_SAMPLES = 5000
IWAE_ROWS = 1000
ROWS_AT_ONCE = 500

MODEL: dict[str, dict[str, Any]] = {
    "model": {
        "likelihood": "bernoulli",
        "network": "mlp",
        "hidden": [512, 512],
        "latent_dim": 50,
        "prior": "standard_normal",
    },
    "objective": {"binarize": True, "beta": 1.0, "kl_warmup": 0.1, "input_noise": 0.0},
    "optimizer": {
        "max_steps": 80_000,
        "batch_rows": 256,
        "learning_rate": 1e-3,
        "warmup_steps": 1000,
        "evaluate_every": 1000,
        "patience": 10,
        "precision": "bfloat16",
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--data", type=Path, required=True, help="the folder that has mnist/")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads (default: %(default)s)")
    add_overrides(parser)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train once, and estimate."""
    config = settings(MODEL, options.overrides)
    mnist = options.data / "mnist"
    parts = split_of(pictures.read(mnist, "train"), pictures.read(mnist, "t10k"), held_out=VALIDATION_ROWS)
    with threads(options.threads):
        trial = attempt(parts, config, seed=SEED)
        with timed() as estimating:
            figures = likelihoods(trial.trained.ensemble, parts.test)
    return {
        "binarisation": (__doc__ or "").partition("\n\n")[2].strip(),
        "threads": options.threads,
        "settings": config.model_dump(mode="json"),
        **figures,
        "training": asdict(trial.training),
        "estimating": asdict(estimating),
        "steps": trial.trained.evaluations[-1].step,
        "best": asdict(trial.trained.best),
    }


def split_of(greys: Dataset, test: Dataset, *, held_out: int) -> Split:
    """Return grey images to train on, whose last `held_out` are the validation rows, as bits like the test rows."""
    bits = binarised(greys[slice(len(greys) - held_out, None)], seed=1)
    return Split(
        train=greys[: len(greys) - held_out], validation=bits, calibration=bits[:0], test=binarised(test, seed=2)
    )


def binarised(dataset: Dataset, *, seed: int) -> Dataset:
    """Return images whose pixels are 255 with their grey level as the probability, or else 0."""
    greys = dataset.inputs["image"]
    white = 255 * np.random.default_rng((SEED, seed)).random(greys.shape, np.float32) < greys
    return pictures.with_pixels(dataset, 255 * white.astype(np.uint8))


def likelihoods(
    ensemble: Ensemble, test: Dataset, *, iwae_rows: int = IWAE_ROWS, iwae_samples: int = IWAE_SAMPLES
) -> dict[str, Any]:
    """Return the ELBO of all rows and the IWAE bound of some, evenly apart, each with its standard error."""
    elbo, elbo_error = _elbo(ensemble, test)
    some = test[np.linspace(0, len(test) - 1, iwae_rows).round().astype(np.intp)]
    iwae, iwae_error = estimate_log_likelihood(ensemble, some, samples=iwae_samples, seed=SEED)
    return {
        "elbo": {"rows": len(test), "samples": ELBO_SAMPLES, "mean": elbo, "standard_error": elbo_error},
        "iwae": {"rows": iwae_rows, "samples": iwae_samples, "mean": iwae, "standard_error": iwae_error},
    }


@torch.no_grad()
def _elbo(ensemble: Ensemble, dataset: Dataset) -> tuple[float, float]:
    """Return the mean ELBO and its standard error, nats.

    Each row has noise points of its own, so that their chance averages out over the rows.
    """
    generator = generator_of(torch.device("cpu"), SEED, ELBO_SAMPLES)
    values = []
    for positions in np.split(np.arange(len(dataset)), range(ROWS_AT_ONCE, len(dataset), ROWS_AT_ONCE)):
        inputs = tensors_of(dataset.signature, dataset.take(positions))
        noise = torch.randn(len(positions), ELBO_SAMPLES, ensemble.member.latent_dim, generator=generator)
        values.append(ensemble.bounds(inputs, noise).elbo.double())
    elbo = torch.cat(values)
    return float(elbo.mean()), float(elbo.std() / math.sqrt(len(elbo)))
