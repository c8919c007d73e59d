"""Runs of every kind that training makes export to bundles that verify."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import dataset_of
from vaeserve.config import load
from vaeserve.signature import Signature
from vaeserve_export.export import export
from vaeserve_export.verify import verify
from vaeserve_training.config import PRESETS, TrainConfig
from vaeserve_training.data import Dataset, split
from vaeserve_training.run import write_run
from vaeserve_training.train import train

# What to train on, and the settings that make it another kind of model.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"preset {preset}": ("mixed", PRESETS[preset]) for preset in PRESETS},
    "images, preset default": ("conv", {}),
    "fixed Gaussian, robust scaling": ("mixed", {"model": {"likelihood": "gaussian_fixed", "scaling": ["robust"]}}),
    "three members, each scaled in its own way": (
        "mixed",
        {"model": {"scaling": ["standard", "robust", "quantile"]}, "ensemble": {"size": 3}},
    ),
    "numbers from 0 to 1": ("binary21", {"model": {"likelihood": "continuous_bernoulli"}}),
    "residual network, standard normal prior": (
        "table33",
        {"model": {"network": "residual", "prior": "standard_normal"}},
    ),
    "the encoder's own width, 5 samples": ("table7", {"model": {"score_sigma": 0, "num_samples": 5}}),
    "autoencoder": ("codes", {"model": {"posterior": "point", "prior": "standard_normal"}}),
    "one column": ("one", {}),
    "grey levels, continuous Bernoulli": ("grey", {"model": {"likelihood": "continuous_bernoulli"}}),
    "grey levels, each with a probability": ("image", {"model": {"likelihood": "discretized_logistic"}}),
    "exemplars for images": ("image", {"model": {"prior": "exemplars"}}),
}


def rows_of(kind: str) -> Dataset:
    """Return rows to train on."""
    if kind != "one":
        return dataset_of(kind)
    rows = dataset_of("table3").inputs["numeric"][:, :1]
    return Dataset("one", Signature.numbers(["c0"]), {"numeric": rows})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_any_kind_exports_to_a_bundle_that_verifies(kind: str, tmp_path: Path) -> None:
    """Whatever the likelihood, network, prior, scaling and ensemble, the bundle passes every check."""
    data, settings = KINDS[kind]
    brief = {"max_steps": 40, "evaluate_every": 20}
    sections = {**settings, "optimizer": {**settings.get("optimizer", {}), **brief}}
    config = load(TrainConfig, overrides=sections)
    dataset = rows_of(data)
    parts = split(dataset, config.data, seed=0)
    run = write_run(tmp_path / "run", train(parts, config, seed=0), dataset=dataset, split=parts, seed=0)
    verification = verify(export(run, tmp_path / "models", name="m").path)
    assert verification.passed, verification.checks[-1]
