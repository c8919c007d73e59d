"""What a sweep's folder is for, and what is kept out of it."""

from pathlib import Path
from typing import Any

import pytest

from vaeserve.config import load
from vaeserve.errors import RunError
from vaeserve_training.config import TrainConfig
from vaeserve_training.sweep import plan


def settings(**sections: dict[str, Any]) -> TrainConfig:
    """Return settings of training."""
    return load(TrainConfig, overrides=sections)


def take(out: Path, *, resume: bool = False, changed: TrainConfig | None = None, **given: Any) -> None:
    """Take `out` for a sweep."""
    values: dict[str, Any] = {"data": "digits", "rows_sha256": "abc", "seed": 0} | given
    plan.take(out, settings=changed or settings(), resume=resume, **values)


def test_a_folder_is_taken_once_and_gone_on_with(tmp_path: Path) -> None:
    """The same sweep goes on if it is told to, and isn't begun over another's work if not."""
    out = tmp_path / "deep" / "sweep"
    plan.refuse(out, resume=False)
    take(out)
    written = (out / "plan.json").read_bytes()
    with pytest.raises(RunError, match=r"sweep: "):
        take(out)
    with pytest.raises(RunError, match=r"sweep: holds a sweep"):
        plan.refuse(out, resume=False)
    plan.refuse(out, resume=True)
    take(out, resume=True)
    take(tmp_path / "new", resume=True)  # which has nothing to go on with
    assert (out / "plan.json").read_bytes() == written


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows_sha256": "abd"}, "the rows or their labels changed since"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"changed": settings(model={"latent_dim": 3})}, "model.latent_dim was null and is 3"),
        ({"data": "rows.csv"}, "data was digits and is rows.csv"),
    ],
)
def test_another_sweep_is_refused(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    """Other rows, settings or another seed are named, and nothing is changed."""
    out = tmp_path / "sweep"
    take(out)
    with pytest.raises(RunError, match=f"of another sweep: {message}; choose another --out"):
        take(out, resume=True, **given)


def test_what_changes_no_model_may_change(tmp_path: Path) -> None:
    """How often to write checkpoints, where rows lie, and the weightings themselves are no part of a sweep."""
    out = tmp_path / "sweep"
    take(out)
    changed = settings(optimizer={"checkpoint_seconds": 1}, data={"memory_gib": 1}, objective={"beta": 3})
    take(out, resume=True, changed=changed)


def test_what_is_no_sweep_is_left_alone(tmp_path: Path) -> None:
    """A folder or file of something else isn't taken, with --resume or without."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "precious").touch()
    (tmp_path / "file").touch()
    for name in ("folder", "file"):
        for resume in (False, True):
            with pytest.raises(RunError, match=name):
                plan.refuse(tmp_path / name, resume=resume)
            with pytest.raises(RunError, match=name):
                take(tmp_path / name, resume=resume)
    (tmp_path / "folder" / "plan.json").write_text("[]")
    with pytest.raises(RunError, match="of another sweep"):
        take(tmp_path / "folder", resume=True)
    (tmp_path / "folder" / "plan.json").write_bytes(b"\xff")
    with pytest.raises(RunError, match="not a sweep's plan"):
        take(tmp_path / "folder", resume=True)


def test_two_sweeps_are_not_at_work_in_one_folder(tmp_path: Path) -> None:
    """While one is at work another is refused, and may when it has ended."""
    take(tmp_path / "sweep")
    with (
        plan.alone(tmp_path / "sweep"),
        pytest.raises(RunError, match="another sweep is at work there"),
        plan.alone(tmp_path / "sweep"),
    ):
        pass
    with plan.alone(tmp_path / "sweep"):
        pass
