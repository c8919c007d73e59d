"""What a score costs under the default preset's 2000 exemplars, with their smallest shares held up and without."""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import models
from vaeserve.bundle import Bundle
from vaeserve.signature import Signature
from vaeserve_export.export import export
from vaeserve_service.runtime import Runtime
from vaeserve_training import Dataset, TrainConfig, logarithms, split, train
from vaeserve_training.config import ModelConfig, OptimizerConfig
from vaeserve_training.run import Run, write_run

FEATURES = 16
ROWS = 8192
# Enough for rows to lie apart in the latent space, as they do once a model has learned.
STEPS = OptimizerConfig(max_steps=1000, warmup_steps=20)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each of all in turn (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Score rows by one model's graphs in turns, and by the same model's under N(0, I)."""
    signature = Signature.numbers([f"x{i}" for i in range(FEATURES)])
    rows = models.rows(signature, ROWS, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = _run(work / "exemplars", signature, ModelConfig())
        plain = _run(work / "normal", signature, ModelConfig(prior="standard_normal"))
        with _holding(-math.inf):
            loose = export(run, work / "repository", name="exemplars", version=1)
        bundles = {
            "exemplars, shares as they are": loose,
            "exemplars": export(run, work / "repository", name="exemplars", version=2),
            "N(0, I)": export(plain, work / "repository", name="normal", version=1),
        }
        scorers = {name: (Runtime.load(bundle), bundle) for name, bundle in bundles.items()}
        rounds = [
            {name: _cpu_us_per_row(*scorer, rows) for name, scorer in scorers.items()} for _ in range(options.rounds)
        ]
    return {"cpu_us_per_row": {name: round(statistics.median(r[name] for r in rounds), 2) for name in scorers}}


def _run(path: Path, signature: Signature, model: ModelConfig) -> Run:
    dataset = Dataset("rows", signature, models.rows(signature, models.TRAINING_ROWS))
    config = TrainConfig(model=model, optimizer=STEPS)
    parts = split(dataset, config.data, seed=models.SEED)
    trained = train(parts, config, seed=models.SEED)
    return write_run(path, trained, dataset=dataset, split=parts, seed=models.SEED)


@contextmanager
def _holding(least: float) -> Iterator[None]:
    """Let exported logarithms of sums hold no exponential above `exp(least)`."""
    before, logarithms.LEAST = logarithms.LEAST, least
    try:
        yield
    finally:
        logarithms.LEAST = before


def _cpu_us_per_row(runtime: Runtime, bundle: Bundle, rows: models.Arrays) -> float:
    noise = bundle.noise[: bundle.manifest.num_samples]
    began = time.process_time()
    runtime.score(rows, noise, by_feature=False)
    return (time.process_time() - began) / ROWS * 1e6
