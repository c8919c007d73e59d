"""The training loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vaeserve.config import load
from vaeserve.errors import ConfigError, DataError
from vaeserve.signature import Signature
from vaeserve.source import open_source
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, Split, load_dataset, split
from vaeserve_training.evaluate import evaluate
from vaeserve_training.train import Evaluation, Trained, train


def config(**optimizer: float) -> TrainConfig:
    """Return settings for a small model."""
    return load(TrainConfig, overrides={"model": {"hidden": [32], "latent_dim": 3}, "optimizer": optimizer})


@pytest.fixture(scope="module")
def parts() -> Split:
    """Rows near a plane, in parts."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(500, 2)) @ generator.normal(size=(2, 6)) + 0.1 * generator.normal(size=(500, 6))
    dataset = Dataset("plane", Signature.table([*"abcdef"]), {"numeric": rows.astype(np.float32)})
    return split(dataset, config().data, seed=0)


def bits(trained: Trained) -> bytes:
    """Return every weight's bytes."""
    return b"".join(tensor.numpy().tobytes() for tensor in trained.vae.state_dict().values())


def test_the_same_seed_gives_the_same_bits(parts: Split) -> None:
    """Twice the same seed gives weights that agree in every bit; another seed gives others."""
    first, again, other = (train(parts, config(max_steps=50), seed=seed) for seed in (1, 1, 2))
    assert bits(first) == bits(again) != bits(other)


def test_training_raises_the_held_out_bound(parts: Split) -> None:
    """The bound of rows that weren't trained on rises, and the best evaluation's weights are kept."""
    trained = train(parts, config(max_steps=400, evaluate_every=50), seed=0)
    elbos = [evaluation.elbo for evaluation in trained.evaluations]
    assert max(elbos) > elbos[0] + 1
    assert trained.best.elbo == max(elbos)
    measured = evaluate(trained.vae, parts.validation)["elbo"]
    assert measured == pytest.approx(trained.best.elbo, abs=0.5)


def test_training_stops_when_the_held_out_bound_no_longer_rises(parts: Split) -> None:
    """Without a better bound for `patience` evaluations the training ends, long before its last step."""
    seen: list[Evaluation] = []
    settings = config(max_steps=100_000, evaluate_every=10, patience=3, learning_rate=0.05, warmup_steps=0)
    trained = train(parts, settings, seed=0, on_evaluation=seen.append)
    assert seen == trained.evaluations
    assert trained.evaluations[-1].step == trained.best.step + 30


def test_the_best_weights_are_kept_and_not_the_last(parts: Split) -> None:
    """After training that overfits a few rows, the model is what it was at its best evaluation."""
    few = replace(parts, train=parts.train[slice(20)])
    settings = config(max_steps=100_000, evaluate_every=20, patience=30, learning_rate=0.01)
    trained = train(few, settings, seed=0)
    last = trained.evaluations[-1].elbo
    assert last < trained.best.elbo - 1
    measured = evaluate(trained.vae, parts.validation)["elbo"]
    assert abs(measured - trained.best.elbo) < abs(measured - last)


def test_a_loss_that_is_no_number_stops_with_the_step(parts: Split) -> None:
    """A bound that overflows ends the training with the step and the likely cause."""
    with pytest.raises(DataError, match=r"plane: the bound is no number at step \d+; .* optimizer.learning_rate"):
        train(parts, config(max_steps=200, learning_rate=1e30, warmup_steps=0), seed=0)


def test_a_device_that_is_not_there_is_refused(parts: Split) -> None:
    """An unknown device, or CUDA without one, is refused before anything is trained."""
    with pytest.raises(ConfigError, match="--device tpu: expected auto, cpu or cuda"):
        train(parts, config(), seed=0, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--device cuda: PyTorch sees no CUDA device"):
            train(parts, config(), seed=0, device="cuda")


def test_malignant_tumours_score_as_anomalies() -> None:
    """Trained on benign tumours alone, the ELBO tells malignant ones: AUROC of 0.9 and more on held-out rows."""
    settings = load(TrainConfig, overrides={"optimizer": {"max_steps": 500}})
    tumours = split(load_dataset(open_source("breast-cancer")), settings.data, seed=0)
    figures = evaluate(train(tumours, settings, seed=0).vae, tumours.test)
    assert figures["auroc"] > 0.9
    assert figures["elbo"] == pytest.approx(figures["log_likelihood"] - figures["kl"])


def test_bernoulli_takes_no_table_of_other_numbers() -> None:
    """A table with values outside [0, 1] is refused for Bernoulli by column and value, not trained on for nothing."""
    settings = load(TrainConfig, overrides={"model": {"likelihood": "bernoulli"}})
    tumours = split(load_dataset(open_source("breast-cancer")), settings.data, seed=0)
    with pytest.raises(
        DataError, match="column 'mean radius' holds .*; model.likelihood = bernoulli expects values from 0"
    ):
        train(tumours, settings, seed=0)
