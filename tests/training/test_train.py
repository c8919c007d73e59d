"""The training loop."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaeserve.config import load
from vaeserve.errors import ConfigError, DataError, RunError
from vaeserve.signature import Column, Signature
from vaeserve.source import open_source
from vaeserve_training.batches import Batches
from vaeserve_training.checkpoint import Checkpoints
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, Split, load_dataset, split
from vaeserve_training.ensemble import Ensemble
from vaeserve_training.evaluate import evaluate_rows
from vaeserve_training.feed import Feed
from vaeserve_training.objective import bounds, loss
from vaeserve_training.prior import Exemplars, StandardNormal
from vaeserve_training.train import Evaluation, Trained, threads_for, train


def config(
    *,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    size: int = 1,
    **optimizer: Any,
) -> TrainConfig:
    """Return settings for a small model of numbers, scored under N(0, I)."""
    small = {
        "likelihood": "gaussian", "scaling": ["standard"], "hidden": [32], "latent_dim": 3, "prior": "standard_normal",
        "score_sigma": 0.0,
    }  # fmt: skip
    return load(TrainConfig, overrides={
        "data": data or {}, "model": small | (model or {}), "objective": objective or {}, "ensemble": {"size": size},
        "optimizer": optimizer,
    })  # fmt: skip


def numbers(name: str, rows: np.ndarray[Any, Any]) -> Dataset:
    """Return a table of numbers."""
    return Dataset(name, Signature.numbers([*"abcdef"][: rows.shape[1]]), {"numeric": rows.astype(np.float32)})


@pytest.fixture(scope="module")
def parts() -> Split:
    """Rows near a plane, in parts."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(500, 2)) @ generator.normal(size=(2, 6)) + 0.1 * generator.normal(size=(500, 6))
    return split(numbers("plane", rows), config().data, seed=0)


@pytest.fixture(scope="module")
def mixed() -> Split:
    """A table of all kinds of columns, with gaps, in parts."""
    generator = np.random.default_rng(0)
    signature = Signature.table([
        Column("colour", "categorical", ("blue", "red", "green"), nullable=True),
        Column("size", "numeric"),
        Column("flag", "binary"),
        Column("weight", "numeric", nullable=True),
    ])  # fmt: skip
    kind = generator.integers(0, 3, 400)
    size = kind + 0.3 * generator.normal(size=400)
    weight = np.where(generator.random(400) < 0.2, np.nan, 2 * size + 0.3 * generator.normal(size=400))
    numeric = np.stack([size, kind > 0, weight], 1).astype(np.float32)
    colour = np.where(generator.random(400) < 0.1, "", np.array(["blue", "red", "green"])[kind])[:, None]
    dataset = Dataset("mixed", signature, {"numeric": numeric, "categorical": colour})
    return split(dataset, config().data, seed=0)


def bits(trained: Trained) -> bytes:
    """Return every weight's bytes."""
    return b"".join(tensor.numpy().tobytes() for tensor in trained.ensemble.state_dict().values())


def figures(trained: Trained) -> list[dict[str, Any]]:
    """Return what was measured, but for how long it took."""
    return [dataclasses.asdict(replace(evaluation, seconds=0)) for evaluation in trained.evaluations]


def test_the_same_seed_gives_the_same_bits(parts: Split) -> None:
    """Twice the same seed gives weights that agree in every bit; another seed gives others."""
    first, again, other = (train(parts, config(max_steps=30), seed=seed) for seed in (1, 1, 2))
    assert bits(first) == bits(again) != bits(other)
    assert figures(first) == figures(again)


def test_the_seed_alone_decides(mixed: Split) -> None:
    """What PyTorch drew before, and how many threads it has, change no bit; nor is its state touched."""
    settings = config(max_steps=20, size=2, model={"prior": "exemplars", "exemplars": 50})
    first = train(mixed, settings, seed=1)
    torch.manual_seed(123)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = train(mixed, settings, seed=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert bits(first) == bits(again)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_raises_the_held_out_bound(parts: Split) -> None:
    """The bound of rows that weren't trained on rises, and the best evaluation's weights are kept."""
    settings = config(max_steps=400, evaluate_every=50, objective={"kl_warmup": 0.0})
    trained = train(parts, settings, seed=0)
    elbos = [evaluation.elbo for evaluation in trained.evaluations]
    assert max(elbos) > elbos[0] + 1
    assert trained.best.elbo == max(elbos)
    assert trained.best in trained.evaluations
    measured = evaluate_rows(trained.ensemble, parts.validation)["elbo"]
    assert measured == pytest.approx(trained.best.elbo, abs=0.5)
    assert trained.best.elbo == pytest.approx(trained.best.log_likelihood - trained.best.kl, abs=1e-5)
    assert sum(trained.best.latent_kl) == pytest.approx(trained.best.kl, abs=1e-4)


def test_training_stops_when_the_held_out_bound_no_longer_rises(parts: Split) -> None:
    """Without a better bound for `patience` evaluations the training ends, long before its last step."""
    seen: list[Evaluation] = []
    settings = config(
        max_steps=100_000, evaluate_every=10, patience=3, learning_rate=0.05, warmup_steps=0,
        objective={"kl_warmup": 0.0},
    )  # fmt: skip
    trained = train(parts, settings, seed=0, on_evaluation=seen.append)
    assert seen == trained.evaluations
    assert trained.evaluations[-1].step == trained.best.step + 30


def test_patience_waits_for_the_whole_beta(parts: Split) -> None:
    """While beta still rises the training goes on, however long the bound has fallen."""
    settings = config(
        max_steps=400, evaluate_every=10, patience=2, learning_rate=0.05, warmup_steps=0, objective={"kl_warmup": 0.5}
    )
    trained = train(parts, settings, seed=0)
    assert trained.evaluations[-1].step >= 200 + 20


def test_the_best_weights_are_kept_and_not_the_last(parts: Split) -> None:
    """After training that overfits a few rows, the model is what it was at its best evaluation."""
    few = replace(parts, train=parts.train[slice(20)])
    settings = config(
        max_steps=3000, evaluate_every=20, patience=30, learning_rate=0.01,
        objective={"kl_warmup": 0.0, "input_noise": 0.0},
    )  # fmt: skip
    trained = train(few, settings, seed=0)
    last = trained.evaluations[-1].elbo
    assert last < trained.best.elbo - 1
    measured = evaluate_rows(trained.ensemble, parts.validation)["elbo"]
    assert abs(measured - trained.best.elbo) < abs(measured - last)


def test_without_validation_rows_the_last_weights_are_kept(parts: Split) -> None:
    """With nothing held out to stop on, training goes to its last step and keeps what it then has."""
    settings = config(
        max_steps=300, evaluate_every=10, patience=1, learning_rate=0.05, warmup_steps=0,
        data={"validation": 0.0}, objective={"kl_warmup": 0.0},
    )  # fmt: skip
    everything = Dataset("plane", parts.train.signature, parts.train.inputs)
    rows = split(everything, settings.data, seed=0)
    assert len(rows.validation) == 0

    def spoil(evaluation: Evaluation) -> None:
        if evaluation.step == 290:
            vars(settings.optimizer)["learning_rate"] = 10.0

    trained = train(rows, settings, seed=0, on_evaluation=spoil)
    assert trained.best.elbo < max(evaluation.elbo for evaluation in trained.evaluations) - 0.1
    assert trained.best is trained.evaluations[-1]
    assert trained.best.step == 300
    measured = evaluate_rows(trained.ensemble, rows.train)["elbo"]
    assert measured == pytest.approx(trained.best.elbo, rel=0.15)


def test_the_last_step_is_evaluated(parts: Split) -> None:
    """However the steps divide, evaluations come at their interval and at the end."""
    trained = train(parts, config(max_steps=25, evaluate_every=10), seed=0)
    assert [evaluation.step for evaluation in trained.evaluations] == [10, 20, 25]


@pytest.mark.parametrize("warmup", [0.0, 0.5, 1.0])
def test_beta_warms_up_step_by_step(parts: Split, warmup: float) -> None:
    """The loss of each step has beta times its share of the warm-up's steps, and from then on beta."""
    settings = config(
        max_steps=10, evaluate_every=1, learning_rate=1e-30, patience=100,
        objective={"kl_warmup": warmup, "beta": 2.0, "samples": 2, "input_noise": 0.1},
    )  # fmt: skip
    trained = train(parts, settings, seed=0)  # whose weights stay what they were
    feed = Feed(parts.train, trained.ensemble, device=torch.device("cpu"), memory_bytes=math.inf)
    vae = trained.ensemble.member
    batches = Batches(feed, settings, seed=0, latent_dim=3, takes_noise=vae.features.takes_noise)
    for evaluation in trained.evaluations:
        rows, noise, seen = batches.at(evaluation.step)
        beta = 2.0 * min(1.0, evaluation.step / (10 * warmup)) if warmup else 2.0
        with torch.no_grad():
            expected = loss(vae, rows.pick(0), noise[0], settings.objective, beta=beta, seen=seen.pick(0))
        assert evaluation.train_bound == pytest.approx(-float(expected), rel=1e-5)


def test_the_train_bound_is_the_mean_since_the_last_evaluation(parts: Split) -> None:
    """An evaluation's train bound is the mean of its steps' objectives."""
    each = train(parts, config(max_steps=20, evaluate_every=1), seed=0).evaluations
    tens = train(parts, config(max_steps=20, evaluate_every=10), seed=0).evaluations
    means = [np.mean([one.train_bound for one in some]) for some in (each[:10], each[10:])]
    assert [ten.train_bound for ten in tens] == pytest.approx(means, rel=1e-5)


def test_a_model_of_linear_rows_comes_near_its_optimum() -> None:
    """On rows of one Gaussian factor the held-out bound comes near the exact log-likelihood of the best such model.

    With sigma 1 the maximum-likelihood model is probabilistic PCA: the covariance's eigenvalues, where they are above
    1, and 1 elsewhere. Source: Tipping and Bishop, Probabilistic Principal Component Analysis, 1999, eq. 7.
    """
    generator = np.random.default_rng(0)
    factor = generator.normal(size=(6000, 1))
    rows = factor @ np.array([[1.0, -2, 3, 4, -5, 6]]) + generator.normal(size=(6000, 6)) * np.arange(1, 7) * 0.4
    settings = config(
        max_steps=1200, learning_rate=5e-3, batch_rows=256,
        model={"likelihood": "gaussian_fixed", "latent_dim": 2}, objective={"kl_warmup": 0.0, "input_noise": 0.0},
    )  # fmt: skip
    rows_split = split(numbers("factor", rows), settings.data, seed=0)
    trained = train(rows_split, settings, seed=0)
    features = trained.ensemble.member.features

    def scaled(part: Dataset) -> torch.Tensor:
        x: torch.Tensor = features({"numeric": torch.from_numpy(part.inputs["numeric"])}).x
        return x.double()

    values, vectors = torch.linalg.eigh(scaled(rows_split.train).T.cov())
    covariance = vectors @ torch.diag(values.clamp(min=1)) @ vectors.T
    best = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance)
    exact = float(best.log_prob(scaled(rows_split.test)).mean())
    inputs = {"numeric": torch.from_numpy(rows_split.test.inputs["numeric"])}
    with torch.no_grad():
        elbo = float(trained.ensemble.bounds(inputs, torch.randn(len(rows_split.test), 100, 2)).elbo.mean())
    untrained = float(torch.distributions.Normal(0.0, 1.0).log_prob(scaled(rows_split.test)).sum(1).mean())
    assert untrained < exact - 1
    assert exact - 0.1 < elbo < exact + 0.05
    assert trained.best.active_units == 1


def test_too_much_beta_collapses_and_is_warned_of(parts: Split) -> None:
    """Under a huge beta the encoder says nothing, which is measured, and warned of with what to change."""
    trained = train(parts, config(max_steps=300, learning_rate=0.01, objective={"beta": 100.0}), seed=0)
    assert trained.best.active_units == 0
    assert trained.best.kl < 0.05
    (warning,) = trained.warnings
    assert warning.startswith("posterior collapse: none of the 3 latent dimensions")
    assert "lower objective.beta from 100" in warning
    healthy = train(parts, config(max_steps=300, learning_rate=0.01), seed=0)
    assert healthy.warnings == []
    assert healthy.best.active_units >= 1
    assert healthy.best.mutual_information > 1


def test_free_bits_and_warm_up_mend_a_collapse(parts: Split) -> None:
    """With free bits the same training keeps nats in its latent dimensions."""
    kls = [
        train(
            parts,
            config(max_steps=300, learning_rate=0.01, objective={"beta": 100.0, "kl_warmup": 0.0, "free_bits": bits}),
            seed=0,
        ).best.kl
        for bits in (0.0, 0.5)
    ]
    assert kls[0] < 0.05 < 1.0 < kls[1]


@pytest.mark.parametrize("size", [1, 2])
def test_a_table_of_all_kinds_with_gaps_is_learned(mixed: Split, size: int) -> None:
    """Numbers, bits, categories and gaps train together, alone and batched: the bound rises far."""
    settings = config(
        max_steps=300, evaluate_every=50, size=size, learning_rate=0.01, patience=100,
        model={"likelihood": "student_t", "scaling": ["standard", "robust"]}, objective={"kl_warmup": 0.0},
    )  # fmt: skip
    trained = train(mixed, settings, seed=0)
    assert trained.best.elbo > trained.evaluations[0].elbo + 0.5
    untrained = train(mixed, settings.model_copy(update={
        "optimizer": settings.optimizer.model_copy(update={"max_steps": 1, "learning_rate": 1e-30})
    }), seed=0)  # fmt: skip
    assert trained.best.elbo > untrained.best.elbo + 1


@pytest.mark.parametrize("objective", [{"bound": "iwae", "samples": 5}, {"free_bits": 0.1, "samples": 2}])
def test_every_objective_climbs(parts: Split, objective: dict[str, Any]) -> None:
    """IWAE and free bits raise the held-out bound as the plain ELBO does."""
    settings = config(max_steps=300, evaluate_every=50, learning_rate=0.01, objective=objective | {"kl_warmup": 0.0})
    trained = train(parts, settings, seed=0)
    assert trained.best.elbo > trained.evaluations[0].elbo + 0.5


def test_an_autoencoder_has_no_kl(parts: Split) -> None:
    """The point posterior trains, has no KL, and no collapse to warn of."""
    trained = train(parts, config(max_steps=100, model={"posterior": "point"}), seed=0)
    assert trained.best.kl == 0
    assert trained.warnings == []
    assert trained.best.elbo > trained.evaluations[0].log_likelihood - 1e-9


def test_an_ensemble_is_trained_together(parts: Split) -> None:
    """Its members differ, the figures are their means, and the best of them is kept as the one that encodes."""
    settings = config(max_steps=60, evaluate_every=30, size=3, objective={"kl_warmup": 0.0})
    trained = train(parts, settings, seed=0)
    elbos = [evaluate_rows(Ensemble([vae]), parts.validation)["elbo"] for vae in trained.ensemble]
    assert len({round(elbo, 3) for elbo in elbos}) == 3
    assert trained.ensemble.best == int(np.argmax(elbos))
    assert float(np.mean(elbos)) == pytest.approx(trained.best.elbo, abs=0.4)


def test_the_exemplars_are_as_many_training_rows_and_raise_the_bound(parts: Split) -> None:
    """The prior is fitted to training rows once trained, weights untouched, and explains held-out rows better."""
    plain = train(parts, config(max_steps=150), seed=0)
    fitted = train(parts, config(max_steps=150, model={"prior": "exemplars", "exemplars": 100}), seed=0)
    assert isinstance(plain.ensemble.member.prior, StandardNormal)
    prior = fitted.ensemble.member.prior
    assert isinstance(prior, Exemplars)
    assert len(prior.bias) == 100
    state = fitted.ensemble.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.ensemble.state_dict().items())
    bounds = [evaluate_rows(trained.ensemble, parts.test)["elbo"] for trained in (plain, fitted)]
    assert bounds[1] > bounds[0]


def test_no_more_exemplars_than_training_rows(parts: Split) -> None:
    """Asked for more exemplars than there are rows, all rows are one each, and the settings say so."""
    trained = train(parts, config(max_steps=2, model={"prior": "exemplars"}), seed=0)
    assert trained.config.model.exemplars == len(parts.train)
    assert len(trained.ensemble.member.prior.bias) == len(parts.train)  # type: ignore[arg-type]


def test_rows_that_do_not_fit_train_to_the_same_bits(mixed: Split, tmp_path: Path) -> None:
    """With next to no memory, rows are read from disk as they are trained on, to the same weights."""
    arrays = {}
    for name, array in mixed.train.arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        arrays[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    on_disk = replace(mixed, train=replace(mixed.train, arrays=arrays))
    model = {"scaling": ["standard", "robust"], "prior": "exemplars", "exemplars": 30}
    resident = train(mixed, config(max_steps=30, size=2, model=model), seed=0)
    streamed = train(on_disk, config(max_steps=30, size=2, model=model, data={"memory_gib": 1e-9}), seed=0)
    assert bits(resident) == bits(streamed)
    assert figures(resident) == figures(streamed)


@pytest.mark.parametrize("size", [1, 2])
def test_bfloat16_trains_and_keeps_bounds_in_float32(mixed: Split, size: int) -> None:
    """With the networks in bfloat16 the weights stay float32, the result finite and near float32's."""
    results = {}
    for precision in ("float32", "bfloat16"):
        settings = config(
            max_steps=200, evaluate_every=50, learning_rate=5e-3, precision=precision, size=size, patience=100,
            model={"likelihood": "student_t"}, objective={"kl_warmup": 0.0},
        )  # fmt: skip
        results[precision] = train(mixed, settings, seed=0)
    plain, half = results["float32"], results["bfloat16"]
    assert all(parameter.dtype == torch.float32 for parameter in half.ensemble.parameters())
    assert bits(plain) != bits(half)
    assert half.best.elbo == pytest.approx(plain.best.elbo, abs=0.3)
    assert half.best.train_bound == pytest.approx(plain.best.train_bound, abs=0.5)


def test_in_bfloat16_the_loss_stays_float32(mixed: Split) -> None:
    """Under autocast the networks compute in bfloat16, and the bounds are what float32 makes of their outputs."""
    trained = train(mixed, config(max_steps=1, model={"likelihood": "student_t"}), seed=0)
    vae = trained.ensemble.member
    feed = Feed(mixed.train, trained.ensemble, device=torch.device("cpu"), memory_bytes=math.inf)
    batches = Batches(feed, config(), seed=0, latent_dim=3, takes_noise=vae.features.takes_noise)
    batch = batches.at(1)
    rows, noise = batch.rows.pick(0), batch.noise[0]
    assert rows.observed is not None
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = bounds(vae, rows, noise)
            output = vae.decode(vae.encode(rows).sample(noise))
        expected = vae.likelihood.log_density(rows.x[:, None], output).mean(1) * rows.observed
    assert {part.dtype for part in parts} == {output.dtype} == {torch.float32}
    torch.testing.assert_close(parts.feature_log_likelihood, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("evaluate_every", [7, 1000])
def test_a_loss_that_is_no_number_stops_with_the_step(parts: Split, evaluate_every: int) -> None:
    """Weights that overflow end the training with the very step, whenever it is looked at, and the likely cause."""
    settings = config(max_steps=50, evaluate_every=evaluate_every, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(DataError, match="plane: the loss is no number at step 2; .* lower optimizer.learning_rate$"):
        train(parts, settings, seed=0)


def test_a_column_of_enormous_range_is_named_as_the_cause(parts: Split) -> None:
    """Where a column's values lie past all reason, it is what the message names, with what to do about it."""
    rows = parts.train.inputs["numeric"].copy()
    rows[3, 2] = 1e12
    outlier = replace(parts, train=Dataset("plane", parts.train.signature, {"numeric": rows}))
    settings = config(max_steps=50, evaluate_every=5, learning_rate=1e30, warmup_steps=0, model={"scaling": ["robust"]})
    with pytest.raises(DataError, match=r"no number at step \d; .*--drop 'c', which has values .*e\+1[0-9] times"):
        train(outlier, settings, seed=0)


def test_the_last_good_checkpoint_outlives_a_loss_that_is_no_number(parts: Split, tmp_path: Path) -> None:
    """What was trained until the loss stopped being a number is on disk, and the message says where."""
    settings = config(max_steps=100, evaluate_every=1)
    checkpoints = Checkpoints.beside(tmp_path / "run", {"seed": 0})

    def overflow(evaluation: Evaluation) -> None:
        if evaluation.step == 10:
            vars(settings.optimizer)["learning_rate"] = 1e30

    with pytest.raises(DataError, match="the checkpoint of step 10 is kept at .*checkpoint.pt$") as raised:
        train(parts, settings, seed=0, checkpoints=checkpoints, on_evaluation=overflow)
    kept = checkpoints.load()
    assert kept is not None
    assert kept.step == 10
    assert "no number at step 11;" in str(raised.value)
    assert all(torch.isfinite(tensor).all() for tensor in kept.weights.values())


class KilledError(Exception):
    """What ends a training from outside."""


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("validation", [0.1, 0.0])
def test_a_training_goes_on_to_the_same_bits(mixed: Split, tmp_path: Path, size: int, validation: float) -> None:
    """Ended after any evaluation, a training goes on from its checkpoint to the bits of an unbroken one."""
    settings = config(
        max_steps=50, evaluate_every=10, size=size, checkpoint_seconds=0, data={"validation": validation},
        model={"prior": "exemplars", "exemplars": 30, "scaling": ["standard", "robust"]},
    )  # fmt: skip
    rows = mixed if validation else replace(mixed, validation=mixed.validation[slice(0)])
    unbroken = train(rows, settings, seed=3)
    for killed_at in (10, 30, 40, 50):
        checkpoints = Checkpoints.beside(tmp_path / f"run{killed_at}", {"seed": 3})

        def kill(evaluation: Evaluation, at: int = killed_at) -> None:
            if evaluation.step == at:
                raise KilledError

        with pytest.raises(KilledError):
            train(rows, settings, seed=3, checkpoints=checkpoints, on_evaluation=kill)
        here = checkpoints.load()
        assert (here.step if here else 0) == killed_at - 10
        resumed = train(rows, settings, seed=3, checkpoints=checkpoints)
        assert bits(resumed) == bits(unbroken)
        assert figures(resumed) == figures(unbroken)
        assert resumed.ensemble.best == unbroken.ensemble.best
        # Once more, from the checkpoint of the last step.
        again = train(rows, settings, seed=3, checkpoints=checkpoints)
        assert bits(again) == bits(unbroken)


def test_a_training_that_stopped_early_stays_stopped(parts: Split, tmp_path: Path) -> None:
    """Going on from the checkpoint of a training that had stopped trains no further."""
    settings = config(
        max_steps=100_000, evaluate_every=10, patience=3, learning_rate=0.05, warmup_steps=0, checkpoint_seconds=0,
        objective={"kl_warmup": 0.0},
    )  # fmt: skip
    checkpoints = Checkpoints.beside(tmp_path / "run", {"seed": 0})
    first = train(parts, settings, seed=0, checkpoints=checkpoints)
    seen: list[Evaluation] = []
    again = train(parts, settings, seed=0, checkpoints=checkpoints, on_evaluation=seen.append)
    assert seen == []
    assert bits(first) == bits(again)


def test_a_checkpoint_that_cannot_be_written_stops_the_training(parts: Split, tmp_path: Path) -> None:
    """Where the place for checkpoints is taken, training says so by path."""
    (tmp_path / "run.training").touch()
    checkpoints = Checkpoints.beside(tmp_path / "run", {"seed": 0})
    with pytest.raises(RunError, match=r"run\.training.*checkpoint\.pt: File exists"):
        train(parts, config(max_steps=5, checkpoint_seconds=0), seed=0, checkpoints=checkpoints)


def test_a_set_smaller_than_a_batch_trains() -> None:
    """Ten rows are enough, whatever the batch."""
    rows = split(numbers("few", np.random.default_rng(0).normal(size=(10, 3))), config().data, seed=0)
    trained = train(rows, config(max_steps=20, batch_rows=128, size=2), seed=0)
    assert math.isfinite(trained.best.elbo)


def test_constant_columns_have_no_part_in_training(parts: Split) -> None:
    """A column of one value changes no figure."""

    def with_constant(part: Dataset) -> Dataset:
        rows = part.inputs["numeric"].copy()
        rows[:, 1] = 7.0
        return Dataset("constant", part.signature, {"numeric": rows})

    rows = Split(*(with_constant(getattr(parts, name)) for name in ("train", "validation", "calibration", "test")))
    trained = train(rows, config(max_steps=20), seed=0)
    inputs = {"numeric": torch.from_numpy(rows.test.inputs["numeric"])}
    noise = torch.zeros(1, 3)
    before = trained.ensemble.bounds(inputs, noise)
    inputs["numeric"][:, 1] = 1e6
    after = trained.ensemble.bounds(inputs, noise)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert (before.feature_log_likelihood[:, 1] == 0).all()


def test_little_work_is_done_by_one_thread() -> None:
    """Small models of small batches take one thread, large ones all; afterwards it is as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        small, large = torch.nn.Linear(10, 10), torch.nn.Linear(1000, 1000)
        with threads_for(small, 128):  # type: ignore[arg-type]
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with threads_for(large, 128):  # type: ignore[arg-type]
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_device_that_is_not_there_is_refused(parts: Split) -> None:
    """An unknown device, or CUDA without one, is refused before anything is trained."""
    with pytest.raises(ConfigError, match="--device tpu: expected auto, cpu or cuda"):
        train(parts, config(), seed=0, device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--device cuda: PyTorch sees no CUDA device"):
            train(parts, config(), seed=0, device="cuda")


def test_labels_choose_what_is_left_out_and_nothing_else() -> None:
    """Labelled anomalies are as if they weren't there: the weights are those of training without their rows."""
    normal = np.random.default_rng(0).normal(size=(200, 3))
    rows = np.concatenate([normal, 50 + normal[:30]])
    anomalous = np.arange(230) >= 200
    labelled = split(replace(numbers("rows", rows), anomalous=anomalous), config().data, seed=5)
    without = split(numbers("rows", normal), config().data, seed=5)
    assert np.array_equal(labelled.train.inputs["numeric"], without.train.inputs["numeric"])
    settings = config(max_steps=30, model={"prior": "exemplars"})
    assert bits(train(labelled, settings, seed=5)) == bits(train(without, settings, seed=5))
    assert len(labelled.test) == len(without.test) + 30


def test_malignant_tumours_score_as_anomalies() -> None:
    """Trained on benign tumours alone, the ELBO tells malignant ones: AUROC of 0.9 and more on held-out rows."""
    settings = load(TrainConfig, overrides={"optimizer": {"max_steps": 500}})
    tumours = split(load_dataset(open_source("breast-cancer")), settings.data, seed=0)
    measured = evaluate_rows(train(tumours, settings, seed=0).ensemble, tumours.test)
    assert measured["auroc"] > 0.9
    assert measured["elbo"] == pytest.approx(measured["log_likelihood"] - measured["kl"])


def test_bernoulli_takes_no_table_of_other_numbers() -> None:
    """A table with values outside [0, 1] is refused for Bernoulli by column and value, not trained on for nothing."""
    tumours = split(load_dataset(open_source("breast-cancer")), config().data, seed=0)
    for likelihood in ("bernoulli", "continuous_bernoulli"):
        expected = f"column 'mean radius' holds .*; model.likelihood = {likelihood} expects values from 0"
        with pytest.raises(DataError, match=expected):
            train(tumours, config(model={"likelihood": likelihood}), seed=0)


def test_rows_that_nobody_labelled_teach_nothing(parts: Split) -> None:
    """With contamination stated, a cluster of anomalies among the training rows is still surprising at the end."""
    normal = parts.train.inputs["numeric"]
    cluster = (8 + 0.05 * np.random.default_rng(0).normal(size=(len(normal) // 20, 6))).astype(np.float32)
    dirty = replace(parts, train=numbers("dirty", np.concatenate([normal, cluster])))

    def clusters_score(contamination: float, prior: str) -> float:
        settings = config(max_steps=400, objective={"contamination": contamination}, model={"prior": prior})
        trained = train(dirty, settings, seed=0)
        assert trained.config.model.exemplars == int(len(dirty.train) * (1 - 2 * contamination))
        return evaluate_rows(trained.ensemble, numbers("cluster", cluster))["score"]

    # By what is learned under the one prior, and by who is an exemplar under the other.
    assert clusters_score(0.05, "standard_normal") > clusters_score(0.0, "standard_normal") + 10  # nats
    assert clusters_score(0.05, "exemplars") > clusters_score(0.0, "exemplars") + 20


def test_iwae_stops_by_its_own_bound(parts: Split) -> None:
    """What is climbed is what is watched: the best evaluation is that of the best IWAE bound, not of the best ELBO."""
    objective = {"bound": "iwae", "samples": 20, "kl_warmup": 0.0}
    trained = train(parts, config(max_steps=200, evaluate_every=20, objective=objective), seed=0)
    assert trained.best.bound == max(evaluation.bound for evaluation in trained.evaluations)
    assert all(evaluation.bound > evaluation.elbo for evaluation in trained.evaluations)


def test_an_ensembles_loss_that_is_no_number_has_its_message_too(parts: Split) -> None:
    """Several members stop as one does: with the step and the likely cause."""
    with pytest.raises(DataError, match=r"the loss is no number at step \d+; .* optimizer.learning_rate"):
        train(parts, config(max_steps=200, learning_rate=1e30, warmup_steps=0, size=2), seed=0)


def test_a_table_without_a_column_that_varies_is_refused(parts: Split) -> None:
    """Where all columns are constant there is nothing to train."""
    same = replace(parts, train=numbers("same", np.full((50, 6), 3.0)))
    with pytest.raises(DataError, match="same: no column varies over the training rows; expected one or more"):
        train(same, config(max_steps=10), seed=0)


def test_masked_columns_are_told(parts: Split) -> None:
    """A column of one value in the training rows is named in a warning."""
    rows = parts.train.inputs["numeric"].copy()
    rows[:, 2] = 7
    trained = train(replace(parts, train=numbers("constant", rows)), config(max_steps=20), seed=0)
    assert any(warning.endswith("and masked: c") for warning in trained.warnings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": {"network": "conv"}}, "model.network = conv: is for images; expected mlp or residual"),
        ({"model": {"likelihood": "discretized_logistic"}}, "is for images; expected student_t or gaussian"),
        ({"objective": {"binarize": True}}, "objective.binarize = true: is for images"),
    ],
)
def test_what_is_for_images_is_refused_for_a_table(parts: Split, settings: dict[str, Any], message: str) -> None:
    """A network, a likelihood or an objective of images is no table's."""
    with pytest.raises(ConfigError, match=message):
        train(parts, load(TrainConfig, overrides=settings), seed=0)


def test_images_too_small_for_convolutions_are_refused() -> None:
    """Three pixels on a side can't be halved twice."""
    rows = Dataset("tiny", Signature.image((1, 3, 3)), {"image": np.zeros((40, 1, 3, 3), np.uint8)})
    settings = load(TrainConfig, overrides={"model": {"network": "conv"}})
    with pytest.raises(ConfigError, match="model.network = conv: images of 3 pixels on a side; expected 4 or more"):
        train(split(rows, settings.data, seed=0), settings, seed=0)
