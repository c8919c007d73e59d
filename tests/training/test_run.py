"""The run on disk."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from vaeserve.config import load
from vaeserve.errors import RunError
from vaeserve_training.config import TrainConfig
from vaeserve_training.run import Run, refuse_existing


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


def test_weights_come_back_bit_by_bit(models: Any) -> None:
    """A model read from its run gives the same outputs as itself read again."""
    run = models.runs["table7"]
    z = torch.randn(4, 3)
    assert torch.equal(run.vae().decode(z), run.vae().decode(z))


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


def test_a_run_is_never_overwritten(run: Path) -> None:
    """Training to where something is refuses at once."""
    with pytest.raises(RunError, match="exists already; choose another --out"):
        refuse_existing(run)
