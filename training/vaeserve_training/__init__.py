"""Training variational autoencoders in PyTorch: from rows to a run."""

from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, load_dataset, split
from vaeserve_training.objective import Bounds, bounds
from vaeserve_training.run import Run
from vaeserve_training.train import train
from vaeserve_training.vae import VAE, Posterior

__all__ = [
    "VAE",
    "Bounds",
    "Dataset",
    "Posterior",
    "Run",
    "TrainConfig",
    "bounds",
    "load_dataset",
    "split",
    "train",
]
