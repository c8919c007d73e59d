"""The reference models that are measured, made by the project's own training and export from seeded rows."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.bundle import Bundle
from vaeserve.signature import Signature
from vaeserve_export.export import export
from vaeserve_training import Dataset, TrainConfig, split, train
from vaeserve_training.config import ModelConfig, OptimizerConfig
from vaeserve_training.run import write_run

Arrays = dict[str, NDArray[Any]]

SEED = 0
TRAINING_ROWS = 4000
TAB_FEATURES = 32
IMAGE = (1, 28, 28)
# How well a model fits doesn't change what it costs.
BRIEFLY = OptimizerConfig(max_steps=200, warmup_steps=20)
_PLAIN: dict[str, Any] = {
    "likelihood": "gaussian",
    "scaling": ("standard",),
    "prior": "standard_normal",
    "score_sigma": 0.0,
}


def tab(work: Path) -> Bundle:
    """Return the bundle of "tab": 32 features, MLP 128-128, latent 16, 8 samples; built unless `work` has it."""
    signature = Signature.numbers([f"x{i}" for i in range(TAB_FEATURES)])
    return _bundle(work, "tab", signature, ModelConfig(latent_dim=16, hidden=(128, 128), num_samples=8, **_PLAIN))


def img(work: Path) -> Bundle:
    """Return the bundle of "img": 28 x 28 pixels, MLP 512-512, latent 32, 1 sample; built unless `work` has it."""
    return _bundle(
        work, "img", Signature.image(IMAGE), ModelConfig(latent_dim=32, hidden=(512, 512), num_samples=1, **_PLAIN)
    )


def rows(signature: Signature, count: int, *, seed: int = SEED) -> Arrays:
    """Return normal rows: each value a sum of factors, half as many as a table's features, and some noise."""
    spec = signature.inputs[0]
    size = math.prod(spec.shape[1:])
    mixing = np.random.default_rng(SEED).normal(size=(TAB_FEATURES // 2, size))
    generator = np.random.default_rng((SEED, seed))
    factors = generator.normal(size=(count, TAB_FEATURES // 2))
    noise = generator.normal(size=(count, size))
    values = (factors @ mixing + 0.5 * noise).reshape(count, *spec.shape[1:])
    if spec.dtype == "UINT8":
        return {spec.name: np.clip(128 + 20 * values, 0, 255).astype(np.uint8)}
    return {spec.name: values.astype(np.float32)}


def _bundle(work: Path, name: str, signature: Signature, model: ModelConfig) -> Bundle:
    repository, run = work / "repository", work / "runs" / name
    path = repository / name / "1"
    if path.exists():
        return Bundle.open(path)
    dataset = Dataset(name, signature, rows(signature, TRAINING_ROWS))
    config = TrainConfig(model=model, optimizer=BRIEFLY)
    parts = split(dataset, config.data, seed=SEED)
    trained = train(parts, config, seed=SEED)
    return export(write_run(run, trained, dataset=dataset, split=parts, seed=SEED), repository, name=name, version=1)
