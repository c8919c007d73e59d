"""What the comparison with PyOD says, and when it can't be made."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import pyod_time
from benchmarks.__main__ import main

THEIRS = {"auroc": 0.9, "train_cpu_s": 10.0, "train_wall_s": 20.0}


def run_of(*aurocs: float) -> dict[str, Any]:
    """Return a run in which trainings of 1, 2, ... steps, and as many seconds, have these AUROCs."""
    tried = [
        {"steps": steps, "auroc": auroc, "train_cpu_s": float(steps), "train_wall_s": float(steps)}
        for steps, auroc in enumerate(aurocs, start=1)
    ]
    return {"pyod": THEIRS, "tried": tried}


def test_the_ratio_is_of_all_sets_together() -> None:
    """The first training whose mean AUROC reaches PyOD's counts, and times are summed before they are divided."""
    ratios = pyod_time.ratios([run_of(0.95, 0.99, 0.99), run_of(0.8, 0.85, 0.99)])
    assert ratios == {"steps": 2, "auroc": 0.92, "pyod_auroc": 0.9, "train_cpu_s": 0.2, "train_wall_s": 0.1}


def test_there_is_no_ratio_where_the_auroc_is_not_reached() -> None:
    """If our mean AUROC never gets to PyOD's, no time is made up."""
    ratios = pyod_time.ratios([run_of(0.95, 0.95), run_of(0.8, 0.8)])
    assert ratios == {"steps": None, "pyod_auroc": 0.9, "train_cpu_s": None, "train_wall_s": None}


@pytest.mark.parametrize("python", ["/nonexistent/python", sys.executable])
def test_says_that_pyod_is_not_there(python: str, tmp_path: Path) -> None:
    """An interpreter that is missing, or has no pyod, is named."""
    folder = tmp_path / "adbench"
    folder.mkdir()
    np.savez(folder / "1_rows.npz", X=np.random.default_rng(0).normal(size=(40, 3)), y=np.repeat([0, 1], [30, 10]))
    with pytest.raises(RuntimeError, match=f"{python}: .*expected a Python with pyod"):
        main(["pyod", "--data", str(tmp_path), "--pyod-python", python])
