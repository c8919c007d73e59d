"""The time in which the preset `fast` reaches the AUROC of PyOD's VAE, against PyOD's own, in turns on one thread."""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import adbench
from benchmarks.settings import settings
from benchmarks.trial import attempt, score, threads
from vaeserve_training.config import PRESETS
from vaeserve_training.data import Split
from vaeserve_training.evaluate import detection

SCRIPT = Path(__file__).with_name("pyod_vae.py")
LARGEST = 5
# How long trainings are tried, each from the start.
STEPS = (50, 100, 200, 400, 1000)
TIMES = ("train_cpu_s", "train_wall_s")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--data", type=Path, required=True, help="the folder that has adbench/")
    parser.add_argument("--pyod-python", required=True, help="a Python that has pyod (3.6.7), torch and tqdm")
    parser.add_argument("--sets", nargs="+", default=[], metavar="NAME", help="sets (default: the five largest)")
    parser.add_argument("--seeds", type=int, default=1, help="seeds, from 0 (default: %(default)s)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Fit both on every set with every seed, one after the other."""
    folder = options.data / "adbench"
    paths = adbench.paths(folder, options.sets)
    if not options.sets:
        paths = sorted(paths, key=lambda path: len(adbench.read(path)))[-LARGEST:]
    with threads(1):
        runs = [_run(path, options.pyod_python, seed=seed) for path in paths for seed in range(options.seeds)]
    return {"steps_tried": STEPS, "ours_to_pyod": ratios(runs), "runs": runs}


def ratios(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return our times to pyod's where our mean AUROC over the sets first reaches its own; None if it never does."""
    theirs = statistics.fmean(run["pyod"]["auroc"] for run in runs)
    for tried in zip(*(run["tried"] for run in runs), strict=True):
        ours = statistics.fmean(trial["auroc"] for trial in tried)
        if ours >= theirs:
            times = {
                name: round(sum(trial[name] for trial in tried) / sum(run["pyod"][name] for run in runs), 4)
                for name in TIMES
            }
            return {"steps": tried[0]["steps"], "auroc": round(ours, 5), "pyod_auroc": round(theirs, 5), **times}
    return {"steps": None, "pyod_auroc": round(theirs, 5), **dict.fromkeys(TIMES)}


def _run(path: Path, python: str, *, seed: int) -> dict[str, Any]:
    dataset = adbench.read(path)
    assert dataset.anomalous is not None  # noqa: S101 - the sets have labels
    division = adbench.divide(dataset.anomalous, seed=seed)
    rows = dataset.arrays["numeric"]
    theirs = _pyod(
        python,
        {"train": rows[division.train], "test": rows[division.test], "anomalous": dataset.anomalous[division.test]},
        seed=seed,
    )
    validation = settings(PRESETS["fast"], []).data.validation
    split = adbench.split_of(dataset, division, contaminated=False, validation=validation, seed=seed)
    _fast(split, 1, seed=seed)  # what a first training loads isn't training
    tried = [_fast(split, steps, seed=seed) for steps in STEPS]
    reached = next((trial for trial in tried if trial["auroc"] >= theirs["auroc"]), None)
    run = {
        "set": dataset.name,
        "seed": seed,
        "pyod": theirs,
        "reached": reached,
        "ours_to_pyod": reached and {name: round(reached[name] / theirs[name], 4) for name in TIMES},
        "tried": tried,
    }
    print(dataset.name, seed, theirs, tried, file=sys.stderr)
    return run


def _fast(split: Split, steps: int, *, seed: int) -> dict[str, Any]:
    """Train for `steps`, a tenth of them to warm up."""
    config = settings(PRESETS["fast"], [f"optimizer.max_steps={steps}", f"optimizer.warmup_steps={steps // 10}"])
    trial = attempt(split, config, seed=seed)
    assert split.test.anomalous is not None  # noqa: S101 - a view of labelled rows
    auroc = detection(score(trial.trained.ensemble, split.test), split.test.anomalous)["auroc"]
    return {
        "steps": steps,
        "auroc": round(auroc, 5),
        "train_cpu_s": round(trial.training.cpu_s, 4),
        "train_wall_s": round(trial.training.wall_s, 4),
    }


def _pyod(python: str, arrays: dict[str, np.ndarray[Any, Any]], *, seed: int) -> dict[str, Any]:
    """Fit PyOD's VAE in a process of its own; raises RuntimeError where there is no pyod."""
    with tempfile.NamedTemporaryFile(suffix=".npz") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        command = [python, "-I", str(SCRIPT), file.name, str(seed)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            raise RuntimeError(f"{python}: {said}; expected a Python with pyod 3.6.7, torch and tqdm") from None
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in figures.items()}
