"""The run on disk."""

import shutil
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vaeserve.config import load
from vaeserve.errors import RunError
from vaeserve.signature import Column, Signature
from vaeserve.source import open_source
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, Split, load_dataset, split
from vaeserve_training.prior import Exemplars
from vaeserve_training.run import Run, refuse_target, write_run
from vaeserve_training.train import Trained, train


@pytest.fixture
def run(models: Any, tmp_path: Path) -> Path:
    """A copy of a run that a test may break."""
    return Path(shutil.copytree(models.runs["table7"].path, tmp_path / "run"))


@pytest.fixture(scope="module")
def mixed() -> tuple[Dataset, Split, Trained]:
    """An ensemble with exemplars, trained for a moment on a table of all kinds of columns with gaps."""
    generator = np.random.default_rng(0)
    signature = Signature.table([
        Column("colour", "categorical", ("blue", "red"), nullable=True), Column("size", "numeric"),
        Column("flag", "binary"), Column("weight", "numeric", nullable=True),
    ])  # fmt: skip
    numeric = generator.normal(size=(200, 3)).astype(np.float32)
    numeric[:, 1] = numeric[:, 1] > 0
    numeric[::5, 2] = np.nan
    colours = generator.choice(["blue", "red", ""], (200, 1))
    dataset = Dataset("mixed", signature, {"numeric": numeric, "categorical": colours}, np.arange(200) >= 180)
    config = load(TrainConfig, overrides={
        "data": {"kinds": {"size": "numeric", 'the "flag" \u00e9\U0001f600': "binary"}},
        "model": {"hidden": [8], "latent_dim": 2, "scaling": ["standard", "robust"], "exemplars": 40},
        "ensemble": {"size": 3},
        "optimizer": {"max_steps": 6, "evaluate_every": 2},
    })  # fmt: skip
    parts = split(dataset, config.data, seed=4)
    trained = train(parts, config, seed=4)
    trained.ensemble.best = 2
    return dataset, parts, trained


def test_a_run_holds_config_weights_and_metrics(run: Path) -> None:
    """The folder has the settings, the weights, a line of metrics an evaluation, and the held-out rows."""
    assert {path.name for path in run.iterdir()} == {
        "calibration.npz",
        "config.toml",
        "metrics.jsonl",
        "run.json",
        "test.npz",
        "weights.safetensors",
    }
    opened = Run.open(run)
    assert [evaluation["step"] for evaluation in opened.evaluations()] == [20, 40, 60]
    assert len(opened.calibration()) == opened.record.rows["calibration"] == 120
    assert opened.ensemble().member.latent_dim == 3


def test_the_settings_train_the_same_model_again(run: Path) -> None:
    """config.toml is a file for --config, and says what was chosen where the default was automatic."""
    config = load(TrainConfig, file=run / "config.toml")
    assert config.model.likelihood == "gaussian"
    assert config.model.hidden == (33, 21)
    assert tomllib.loads((run / "config.toml").read_text())["model"]["latent_dim"] == 3


def test_settings_of_any_name_come_back(mixed: tuple[Dataset, Split, Trained], tmp_path: Path) -> None:
    """Stated kinds, of columns with any name, are settings to train with again, to the same weights."""
    dataset, parts, trained = mixed
    run = write_run(tmp_path / "run", trained, dataset=dataset, split=parts, seed=4)
    config = load(TrainConfig, file=run.path / "config.toml")
    assert config.data.kinds == {"size": "numeric", 'the "flag" \u00e9\U0001f600': "binary"}
    assert config.model.scaling == ("standard", "robust")
    again = train(parts, config, seed=4)
    state = trained.ensemble.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.ensemble.state_dict().items())


def test_an_ensemble_of_a_mixed_table_comes_back(mixed: tuple[Dataset, Split, Trained], tmp_path: Path) -> None:
    """Every member with its scaling and exemplars, and which is best, are read as written: scores agree to the bit."""
    dataset, parts, trained = mixed
    run = Run.open(write_run(tmp_path / "run", trained, dataset=dataset, split=parts, seed=4).path)
    read = run.ensemble()
    assert (len(read), read.best, run.record.best_member) == (3, 2, 2)
    state, again = trained.ensemble.state_dict(), read.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert all(isinstance(vae.prior, Exemplars) and len(vae.prior.bias) == 40 for vae in read)
    inputs = {
        "numeric": torch.from_numpy(parts.test.inputs["numeric"]),
        "categorical": torch.from_numpy(dataset.signature.codes(parts.test.inputs["categorical"])),
    }
    noise = torch.randn(2, 2)
    for one, other in zip(trained.ensemble.score(inputs, noise), read.score(inputs, noise), strict=True):
        assert torch.equal(one, other)


def test_held_out_rows_come_back_with_labels(mixed: tuple[Dataset, Split, Trained], tmp_path: Path) -> None:
    """Numbers, categories, gaps and labels of the held-out rows are those of the split; calibration has no anomaly."""
    dataset, parts, trained = mixed
    run = write_run(tmp_path / "run", trained, dataset=dataset, split=parts, seed=4)
    for read, part in ((run.test(), parts.test), (run.calibration(), parts.calibration)):
        assert read.signature == part.signature
        assert np.array_equal(read.inputs["numeric"], part.inputs["numeric"], equal_nan=True)
        assert read.inputs["categorical"].tolist() == part.inputs["categorical"].tolist()
        assert read.anomalous is not None
        assert part.anomalous is not None
        assert np.array_equal(read.anomalous, part.anomalous)
    assert run.test().anomalous.sum() == 20  # type: ignore[union-attr]
    assert run.calibration().anomalous.sum() == 0  # type: ignore[union-attr]
    assert run.record.rows == {"train": 108, "validation": 18, "calibration": 36, "test": 38}
    assert {"elbo", "auroc", "average_precision"} <= set(run.record.test)


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    """A model read from its run has the very weights and buffers that were trained."""
    config = load(TrainConfig, overrides={"optimizer": {"max_steps": 5}})
    dataset = load_dataset(open_source("breast-cancer"))
    parts = split(dataset, config.data, seed=0)
    trained = train(parts, config, seed=0)
    run = write_run(tmp_path / "run", trained, dataset=dataset, split=parts, seed=0)
    state, read = trained.ensemble.state_dict(), Run.open(run.path).ensemble().state_dict()
    assert state.keys() == read.keys()
    assert all(torch.equal(state[name], read[name]) for name in state)
    assert run.test().sha256() == parts.test.sha256()


@pytest.mark.parametrize("name", ["weights.safetensors", "calibration.npz", "run.json"])
def test_a_broken_file_is_named(run: Path, name: str) -> None:
    """A file cut short is refused with its name."""
    (run / name).write_bytes((run / name).read_bytes()[:100])
    with pytest.raises(RunError, match=name):
        _ = Run.open(run).ensemble(), Run.open(run).calibration()


def test_weights_of_another_model_are_refused(run: Path, models: Any) -> None:
    """Weights that aren't the run's are told by name, not loaded as far as they go."""
    shutil.copy(models.runs["table3"].path / "weights.safetensors", run)
    with pytest.raises(RunError, match=r"weights\.safetensors: not this run's weights"):
        Run.open(run).ensemble()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """A folder without run.json, and a file, are refused as runs."""
    with pytest.raises(RunError, match=r"it has no run\.json; expected what 'vaeserve train' wrote"):
        Run.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="expected the folder of a run"):
        Run.open(tmp_path / "file")


def test_a_run_that_could_not_be_written_is_refused_before_it_is_trained(run: Path, tmp_path: Path) -> None:
    """A place where something is, below a file, or with too long a name is refused at once; any other is free."""
    refuse_target(tmp_path / "new" / "run")
    for target in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        (tmp_path / "file").touch()
        with pytest.raises(RunError, match="choose another --out"):
            refuse_target(target)
    with pytest.raises(RunError, match="exists already; choose another --out"):
        refuse_target(run)


def test_a_run_is_never_overwritten(mixed: tuple[Dataset, Split, Trained], tmp_path: Path) -> None:
    """What is there already stays as it is."""
    dataset, parts, trained = mixed
    run = write_run(tmp_path / "run", trained, dataset=dataset, split=parts, seed=4)
    before = (run.path / "run.json").read_bytes()
    with pytest.raises(RunError, match="exists already"):
        write_run(tmp_path / "run", replace(trained, warnings=[]), dataset=dataset, split=parts, seed=5)
    assert (run.path / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
