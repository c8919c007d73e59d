"""How well images of another kind are told from FashionMNIST's: MNIST, and FashionMNIST upside down."""

import argparse
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import pictures
from benchmarks.settings import add_overrides, settings
from benchmarks.trial import attempt, score, threads
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, Split
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.evaluate import detection

VALIDATION_ROWS = 5000

# Two minutes on two cores.
MODEL: dict[str, dict[str, Any]] = {"optimizer": {"max_steps": 12_000, "evaluate_every": 1000, "precision": "bfloat16"}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--data", type=Path, required=True, help="the folder that has fashion-mnist/ and mnist/")
    parser.add_argument("--seeds", type=int, default=1, help="seeds, from 0 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads (default: %(default)s)")
    add_overrides(parser)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train on FashionMNIST's training images with every seed, and tell its test images from the others."""
    config = settings(MODEL, options.overrides)
    fashion = options.data / "fashion-mnist"
    images, usual = pictures.read(fashion, "train"), pictures.read(fashion, "t10k")
    others = {"mnist": pictures.read(options.data / "mnist", "t10k"), "upside_down": upside_down(usual)}
    split = Split(
        train=images[: len(images) - VALIDATION_ROWS],
        validation=images[slice(len(images) - VALIDATION_ROWS, None)],
        calibration=images[:0],
        test=usual,
    )
    with threads(options.threads):
        runs = [_run(split, others, config, seed=seed) for seed in range(options.seeds)]
    return {
        "threads": options.threads,
        "settings": config.model_dump(mode="json"),
        "auroc": {name: round(statistics.fmean(run["auroc"][name] for run in runs), 5) for name in others},
        "runs": runs,
    }


def upside_down(dataset: Dataset) -> Dataset:
    """Return the images with their rows of pixels in reverse order."""
    return pictures.with_pixels(dataset, np.ascontiguousarray(dataset.inputs["image"][:, :, ::-1]))


def aurocs(ensemble: Ensemble, usual: Dataset, others: dict[str, Dataset]) -> dict[str, float]:
    """Return how well the score tells each of the other datasets from the usual one."""
    of_usual = score(ensemble, usual)
    found = {}
    for name, other in others.items():
        scores = np.concatenate([of_usual, score(ensemble, other)])
        found[name] = round(detection(scores, np.arange(len(scores)) >= len(of_usual))["auroc"], 5)
    return found


def _run(split: Split, others: dict[str, Dataset], config: TrainConfig, *, seed: int) -> dict[str, Any]:
    trial = attempt(split, config, seed=seed)
    return {
        "seed": seed,
        "auroc": aurocs(trial.trained.ensemble, split.test, others),
        "training": asdict(trial.training),
        "steps": trial.trained.evaluations[-1].step,
        "best": asdict(trial.trained.best),
    }
