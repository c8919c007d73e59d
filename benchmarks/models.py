"""The reference models that are measured, made by the project's own training and export from seeded rows."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle import Bundle
from vaeserve.signature import Signature
from vaeserve_export.export import export
from vaeserve_training import Dataset, TrainConfig, split, train
from vaeserve_training.config import ModelConfig, OptimizerConfig
from vaeserve_training.run import write_run

SEED = 0
TAB = "tab"
TAB_FEATURES = 32
TAB_MODEL = ModelConfig(
    likelihood="gaussian",
    scaling=("standard",),
    latent_dim=16,
    hidden=(128, 128),
    prior="standard_normal",
    score_sigma=0.0,
    num_samples=8,
)
TRAINING_ROWS = 4000
# How well a model fits doesn't change what it costs.
BRIEFLY = OptimizerConfig(max_steps=200, warmup_steps=20)


def tab(work: Path) -> Bundle:
    """Return the bundle of "tab": 32 features, MLP 128-128, latent 16, 8 samples; built unless `work` has it."""
    repository, run = work / "repository", work / "runs" / TAB
    path = repository / TAB / "1"
    if path.exists():
        return Bundle.open(path)
    dataset = Dataset(TAB, Signature.numbers([f"x{i}" for i in range(TAB_FEATURES)]), {"numeric": rows(TRAINING_ROWS)})
    config = TrainConfig(model=TAB_MODEL, optimizer=BRIEFLY)
    parts = split(dataset, config.data, seed=SEED)
    trained = train(parts, config, seed=SEED)
    return export(write_run(run, trained, dataset=dataset, split=parts, seed=SEED), repository, name=TAB, version=1)


def rows(count: int, *, seed: int = SEED) -> NDArray[np.float32]:
    """Return normal rows, float32 [count, TAB_FEATURES], that half as many factors and some noise explain."""
    mixing = np.random.default_rng(SEED).normal(size=(TAB_FEATURES // 2, TAB_FEATURES))
    generator = np.random.default_rng((SEED, seed))
    factors = generator.normal(size=(count, TAB_FEATURES // 2))
    noise = generator.normal(size=(count, TAB_FEATURES))
    return (factors @ mixing + 0.5 * noise).astype(np.float32)  # (rows, features)
