"""The run on disk."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from vaeserve.config import load
from vaeserve.errors import RunError
from vaeserve.source import open_source
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import load_dataset, split
from vaeserve_training.run import Run, refuse_target, write_run
from vaeserve_training.train import train


@pytest.fixture
def run(models: Any, tmp_path: Path) -> Path:
    """A copy of a run that a test may break."""
    return Path(shutil.copytree(models.runs["table7"].path, tmp_path / "run"))


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
    assert opened.vae().latent_dim == 3


def test_the_settings_train_the_same_model_again(run: Path) -> None:
    """config.toml is a file for --config, and says what was chosen where the default was automatic."""
    config = load(TrainConfig, file=run / "config.toml")
    assert config.model.likelihood == "gaussian"
    assert config.model.hidden == (33, 21)
    assert tomllib.loads((run / "config.toml").read_text())["model"]["latent_dim"] == 3


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    """A model read from its run has the very weights and buffers that were trained."""
    config = load(TrainConfig, overrides={"optimizer": {"max_steps": 5}})
    dataset = load_dataset(open_source("breast-cancer"))
    parts = split(dataset, config.data, seed=0)
    trained = train(parts, config, seed=0)
    run = write_run(tmp_path / "run", trained, dataset=dataset, split=parts, config=config, seed=0)
    state, read = trained.vae.state_dict(), Run.open(run.path).vae().state_dict()
    assert state.keys() == read.keys()
    assert all(torch.equal(state[name], read[name]) for name in state)
    assert run.test().sha256() == parts.test.sha256()


@pytest.mark.parametrize("name", ["weights.safetensors", "calibration.npz", "run.json"])
def test_a_broken_file_is_named(run: Path, name: str) -> None:
    """A file cut short is refused with its name."""
    (run / name).write_bytes((run / name).read_bytes()[:100])
    with pytest.raises(RunError, match=name):
        _ = Run.open(run).vae(), Run.open(run).calibration()


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
