"""A model trained and scored through the library, and what that took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, Split
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.evaluate import antithetic
from vaeserve_training.features import tensors_of
from vaeserve_training.randomness import generator_of
from vaeserve_training.train import Trained, train

ROWS_AT_ONCE = 256


@dataclass
class Took:
    """Seconds: of the processor, all threads of this process together, and of the clock."""

    cpu_s: float = 0.0
    wall_s: float = 0.0


@dataclass(frozen=True)
class Trial:
    """A trained model and what its training took."""

    trained: Trained
    training: Took


@contextmanager
def timed() -> Iterator[Took]:
    """Yield what the block takes, complete once it is over."""
    took, cpu, wall = Took(), time.process_time(), time.perf_counter()
    yield took
    took.cpu_s, took.wall_s = time.process_time() - cpu, time.perf_counter() - wall


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch have `count` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def attempt(split: Split, config: TrainConfig, *, seed: int) -> Trial:
    """Train on the CPU, with PyTorch's threads as they are."""
    with timed() as training:
        trained = train(split, config, seed=seed)
    return Trial(trained, training)


@torch.no_grad()
def score(ensemble: Ensemble, dataset: Dataset) -> NDArray[np.float64]:
    """Return each row's score, nats, at as many fixed noise points as the model scores with."""
    noise = antithetic(ensemble.num_samples, ensemble.member.latent_dim, generator=generator_of(torch.device("cpu"), 0))
    scores = []
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        some = np.arange(start, min(start + ROWS_AT_ONCE, len(dataset)))
        inputs = tensors_of(dataset.signature, dataset.take(some))
        scores.append(-ensemble.score(inputs, noise).elbo.double().numpy())
    return np.concatenate(scores)
