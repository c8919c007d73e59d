"""Where a training stands, on disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vaeserve.errors import RunError
from vaeserve_training.checkpoint import Checkpoint, Checkpoints

IDENTITY = {"data": "abc", "settings": {"model": {"hidden": [3], "latent_dim": 2}}, "seed": 7}
CHECKPOINT = Checkpoint(
    step=20,
    weights={"layer": torch.arange(6.0).reshape(2, 3)},
    optimizer={"state": {0: {"step": torch.tensor(20.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
    evaluations=[{"step": 20, "elbo": -1.5, "latent_kl": [0.1, 0.2]}],
    best={"index": 0, "member": 1, "weights": {"layer": torch.ones(2, 3)}},
)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    """The place for the checkpoints of a run."""
    return Checkpoints.beside(tmp_path / "runs" / "run", IDENTITY)


def test_a_checkpoint_comes_back(checkpoints: Checkpoints) -> None:
    """All of it is read as it was written, to the bit, and the newest is what counts."""
    assert checkpoints.load() is None
    checkpoints.save(CHECKPOINT)
    checkpoints.save(replace(CHECKPOINT, step=40))
    here = checkpoints.load()
    assert here is not None
    assert (here.step, here.evaluations) == (40, CHECKPOINT.evaluations)
    assert torch.equal(here.weights["layer"], CHECKPOINT.weights["layer"])
    assert torch.equal(here.best["weights"]["layer"], CHECKPOINT.best["weights"]["layer"])
    assert (here.best["index"], here.best["member"]) == (0, 1)
    assert here.optimizer["param_groups"] == CHECKPOINT.optimizer["param_groups"]
    assert [path.name for path in checkpoints.folder.iterdir()] == ["checkpoint.pt"]


def test_it_lies_beside_its_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """The folder is the run's with `.training` behind its name, and is gone once removed."""
    checkpoints.save(CHECKPOINT)
    assert checkpoints.path == tmp_path / "runs" / "run.training" / "checkpoint.pt"
    checkpoints.remove()
    assert not checkpoints.folder.exists()
    checkpoints.remove()


def test_an_unfinished_training_is_not_overwritten(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Where there is a checkpoint and it isn't asked to go on, that is refused with both ways out."""
    run = tmp_path / "runs" / "run"
    Checkpoints.refuse(run, resume=False)
    checkpoints.save(CHECKPOINT)
    Checkpoints.refuse(run, resume=True)
    with pytest.raises(RunError, match=r"run\.training: holds an unfinished training; expected --resume to go on, or"):
        Checkpoints.refuse(run, resume=False)


@pytest.mark.parametrize(
    ("name", "value"), [("data", "abd"), ("seed", 8), ("settings", {"model": {"hidden": [4], "latent_dim": 2}})]
)
def test_another_training_is_told_by_what_changed(checkpoints: Checkpoints, name: str, value: Any) -> None:
    """With other data, settings or another seed a training can't go on, and is told which of them it is."""
    checkpoints.save(CHECKPOINT)
    other = replace(checkpoints, identity=IDENTITY | {name: value})
    with pytest.raises(RunError, match=f"checkpoint.pt: of another training: the {name} changed since; expected"):
        other.load()


def test_settings_are_the_same_in_any_order(checkpoints: Checkpoints) -> None:
    """Equal settings are equal, whichever way they were written, as lists or tuples."""
    checkpoints.save(CHECKPOINT)
    same = {"seed": 7, "settings": {"model": {"latent_dim": 2, "hidden": (3,)}}, "data": "abc"}
    assert replace(checkpoints, identity=same).load() is not None


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 zip", None, {"step": 3}, [1, 2], {"identity": {}}])
def test_what_is_no_checkpoint_is_refused_by_name(checkpoints: Checkpoints, content: Any) -> None:
    """An empty, cut or foreign file is named, with the way out."""
    checkpoints.save(CHECKPOINT)
    if content is None:
        checkpoints.path.write_bytes(checkpoints.path.read_bytes()[:-200])
    elif isinstance(content, bytes):
        checkpoints.path.write_bytes(content)
    else:
        torch.save(content, checkpoints.path)
    with pytest.raises(RunError, match=r"checkpoint\.pt: not a checkpoint: .*; remove it to start anew"):
        checkpoints.load()


def test_a_checkpoint_runs_no_code(checkpoints: Checkpoints) -> None:
    """A pickle that calls something is refused, not run."""
    checkpoints.save(CHECKPOINT)
    torch.save({"identity": print}, checkpoints.path)
    with pytest.raises(RunError, match="not a checkpoint"):
        checkpoints.load()


def test_a_checkpoint_that_cannot_be_written_leaves_the_last(checkpoints: Checkpoints) -> None:
    """Where writing fails, the error names the file and what went wrong, and nothing half-written stays."""
    checkpoints.folder.parent.mkdir()
    checkpoints.folder.touch()
    with pytest.raises(RunError, match=r"checkpoint\.pt: File exists; the last checkpoint is kept: make room"):
        checkpoints.save(CHECKPOINT)
    assert [path.name for path in checkpoints.folder.parent.iterdir()] == ["run.training"]
