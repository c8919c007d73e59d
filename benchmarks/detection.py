"""How well and how fast presets detect anomalies: ADBench's protocol, and the same with contaminated training rows."""

import argparse
import hashlib
import json
import multiprocessing
import statistics
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import adbench, neighbours
from benchmarks.settings import add_overrides, settings
from benchmarks.trial import attempt, score, timed
from vaeserve_training.config import PRESETS, TrainConfig
from vaeserve_training.data import Split
from vaeserve_training.evaluate import detection

Run = dict[str, Any]

FIGURES = ("auroc", "average_precision", "train_cpu_s", "score_cpu_s")
KEY = ("preset", "set", "seed", "contaminated", "settings")


@dataclass(frozen=True)
class Task:
    """One training: a set, a preset's settings, a seed, and whether its share of intruders is in."""

    path: Path
    preset: str
    config: TrainConfig
    seed: int
    contamination: float
    contaminated: bool

    @property
    def key(self) -> Run:
        """What tells its run from others; `settings` is a fingerprint of them."""
        fingerprint = hashlib.sha256(f"{self.config.model_dump_json()} {self.contamination}".encode()).hexdigest()
        name = self.path.stem.partition("_")[2]
        return dict(zip(KEY, (self.preset, name, self.seed, self.contaminated, fingerprint[:16]), strict=True))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--data", type=Path, required=True, help="the folder that has adbench/")
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=["fast", "default", "quality"])
    parser.add_argument("--sets", nargs="+", default=[], metavar="NAME", help="sets (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, from 0 (default: %(default)s)")
    parser.add_argument(
        "--contamination",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="measure what it costs that this share of the training rows are unlabelled anomalies",
    )
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads a process (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that train at once (default: %(default)s)")
    parser.add_argument(
        "--cache", type=Path, help="a file that keeps each run, so that an interrupted benchmark goes on"
    )
    add_overrides(parser)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and test every preset on every set with every seed."""
    paths = adbench.paths(options.data / "adbench", options.sets)
    configs = {preset: settings(PRESETS[preset], options.overrides) for preset in options.presets}
    tasks = [
        Task(path, preset, config, seed, options.contamination, contaminated)
        for preset, config in configs.items()
        for seed in range(options.seeds)
        for path in paths
        for contaminated in ((False, True) if options.contamination else (False,))
    ]
    runs = _remembered(tasks, options.cache, jobs=options.jobs, threads=options.threads)
    compare = contamination_cost if options.contamination else summary
    of_preset = {preset: [run for run in runs if run["preset"] == preset] for preset in configs}
    return {
        "contamination": options.contamination,
        "threads": options.threads,
        "jobs": options.jobs,
        "presets": {
            preset: {"settings": config.model_dump(mode="json"), **compare(of_preset[preset])}
            for preset, config in configs.items()
        },
        "neighbours": _neighbours(tasks),
        "runs": runs,
    }


def summary(runs: list[Run]) -> dict[str, Any]:
    """Return the mean of each set's mean over the seeds, each seed's mean over the sets, and each set's."""
    return {
        "mean": _mean(runs),
        "slowest_set_train_cpu_s": max(figures["train_cpu_s"] for figures in _by("set", runs).values()),
        "seeds": _by("seed", runs),
        "sets": _by("set", runs),
    }


def contamination_cost(runs: list[Run]) -> dict[str, Any]:
    """Return summaries of the clean runs and of the contaminated ones, of as many rows and the same test."""
    clean, contaminated = ([run for run in runs if run["contaminated"] is with_it] for with_it in (False, True))
    before, after = summary(clean), summary(contaminated)
    lost = {name: round(before["mean"][name] - after["mean"][name], 5) for name in ("auroc", "average_precision")}
    return {"lost": lost, "clean": before, "contaminated": after}


def run(task: Task) -> Run:
    """Train and test once."""
    split = _split(task)
    trial = attempt(split, task.config, seed=task.seed)
    with timed() as scoring:
        scores = score(trial.trained.ensemble, split.test)
    assert split.test.anomalous is not None  # noqa: S101 - a view of labelled rows
    figures = {
        **detection(scores, split.test.anomalous),
        "train_cpu_s": trial.training.cpu_s,
        "train_wall_s": trial.training.wall_s,
        "score_cpu_s": scoring.cpu_s,
    }
    return {
        **task.key,
        **{name: round(value, 5) for name, value in figures.items()},
        "best_step": trial.trained.best.step,
        "last_step": trial.trained.evaluations[-1].step,
        "train_rows": len(split.train),
        "test_rows": len(split.test),
    }


def _split(task: Task) -> Split:
    dataset = adbench.read(task.path)
    assert dataset.anomalous is not None  # noqa: S101 - the sets have labels
    division = adbench.divide(dataset.anomalous, seed=task.seed, contamination=task.contamination)
    return adbench.split_of(
        dataset, division, contaminated=task.contaminated, validation=task.config.data.validation, seed=task.seed
    )


def _neighbours(tasks: list[Task]) -> dict[str, dict[str, float]]:
    """Return the means over sets and seeds of what the nearest neighbours give, on clean and contaminated rows."""
    found: dict[str, list[dict[str, float]]] = {}
    for task in tasks:
        if task.preset == tasks[0].preset:
            split = _split(task)
            assert split.test.anomalous is not None  # noqa: S101 - a view of labelled rows
            figures = detection(neighbours.score(split), split.test.anomalous)
            found.setdefault("contaminated" if task.contaminated else "clean", []).append(figures)
    return {
        rows: {name: round(statistics.fmean(one[name] for one in figures), 5) for name in figures[0]}
        for rows, figures in found.items()
    }


def _remembered(tasks: list[Task], cache: Path | None, *, jobs: int, threads: int) -> list[Run]:
    """Return every task's run: those that the file has, and the others as they are made, which it then has too."""
    lines = cache.read_text().splitlines() if cache and cache.exists() else []
    runs = {_key(before): before for before in map(json.loads, lines)}
    missing = [task for task in tasks if _key(task.key) not in runs]
    for done, made in enumerate(_made(missing, jobs=jobs, threads=threads), start=1):
        print(f"{done}/{len(missing)}", *(f"{name}={made[name]}" for name in KEY[:-1] + FIGURES), file=sys.stderr)
        if cache:
            with cache.open("a") as file:
                file.write(json.dumps(made) + "\n")
        runs[_key(made)] = made
    return [runs[_key(task.key)] for task in tasks]


def _made(tasks: list[Task], *, jobs: int, threads: int) -> Iterator[Run]:
    """Yield the tasks' runs as they are done."""
    # Spawned: a forked process would inherit PyTorch's threads as locks that nobody holds.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_set_threads, initargs=(threads,)) as pool:
        try:
            for future in as_completed([pool.submit(run, task) for task in tasks]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _set_threads(threads: int) -> None:
    torch.set_num_threads(threads)


def _key(values: Run) -> tuple[Any, ...]:
    return tuple(values[name] for name in KEY)


def _by(what: str, runs: list[Run]) -> dict[str, dict[str, float]]:
    values = sorted({run[what] for run in runs})
    return {str(value): _mean(run for run in runs if run[what] == value) for value in values}


def _mean(runs: Iterable[Run]) -> dict[str, float]:
    some = list(runs)
    return {name: round(statistics.fmean(run[name] for run in some), 5) for name in FIGURES}
