"""What the comparison with PyOD says, and when it can't be made."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import pyod_time
from benchmarks.__main__ import main

THEIRS = {"auroc": 0.9, "train_cpu_s": 10.0, "train_wall_s": 20.0}


def run_of(ours: float | None) -> dict[str, Any]:
    """Return a run in which we reached PyOD's AUROC after so many seconds."""
    reached = ours and {"train_cpu_s": ours, "train_wall_s": ours}
    return {"pyod": THEIRS, "reached": reached, "ours_to_pyod": reached}


def test_the_ratio_is_of_all_sets_together() -> None:
    """Times are summed before they are divided."""
    assert pyod_time.ratios([run_of(1.0), run_of(3.0)]) == {"train_cpu_s": 0.2, "train_wall_s": 0.1}


def test_there_is_no_ratio_where_an_auroc_is_not_reached() -> None:
    """A set that we don't get to PyOD's AUROC on isn't left out in silence."""
    assert pyod_time.ratios([run_of(1.0), run_of(None)]) == {"train_cpu_s": None, "train_wall_s": None}


@pytest.mark.parametrize("python", ["/nonexistent/python", sys.executable])
def test_says_that_pyod_is_not_there(python: str, tmp_path: Path) -> None:
    """An interpreter that is missing, or has no pyod, is named."""
    folder = tmp_path / "adbench"
    folder.mkdir()
    np.savez(folder / "1_rows.npz", X=np.random.default_rng(0).normal(size=(40, 3)), y=np.repeat([0, 1], [30, 10]))
    with pytest.raises(RuntimeError, match=f"{python}: .*expected a Python with pyod"):
        main(["pyod", "--data", str(tmp_path), "--pyod-python", python])
