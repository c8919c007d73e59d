"""`vaeserve train`: from a source to a run, said as it goes."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from vaeserve.config import load, parse_overrides
from vaeserve.progress import progress_bar
from vaeserve.source import open_source
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, load_dataset, split
from vaeserve_training.run import Run, refuse_target, write_run
from vaeserve_training.train import Evaluation, pick_device
from vaeserve_training.train import train as train_vae


def train(
    data: str,
    out: Path,
    *,
    config: Path | None,
    overrides: Sequence[str],
    label: str | None,
    normal: str | None,
    drop: Sequence[str],
    seed: int,
    device: str,
    console: Console,
    as_json: bool,
) -> None:
    """Train on `data` and write the run to `out`. Raises as what it calls does, before anything is written."""
    # What can be refused in a moment is, before what takes minutes.
    settings = load(TrainConfig, file=config, overrides=parse_overrides(overrides))
    refuse_target(out)
    pick_device(device)
    dataset = load_dataset(open_source(data), label=label, normal=normal, drop=drop)
    parts = split(dataset, settings.data, seed=seed)
    _say_data(dataset, console)
    with progress_bar(console, "steps, held-out ELBO {task.fields[elbo]} nats") as progress:
        task = progress.add_task("training", total=settings.optimizer.max_steps, elbo="...")

        def show(evaluation: Evaluation) -> None:
            progress.update(task, completed=evaluation.step, elbo=f"{evaluation.elbo:.2f}")

        trained = train_vae(parts, settings, seed=seed, device=device, on_evaluation=show)
        progress.update(task, total=trained.evaluations[-1].step)  # it may have stopped early
    run = write_run(out, trained, dataset=dataset, split=parts, config=settings, seed=seed)
    if as_json:
        print(json.dumps({"run": str(out), **run.record.test}))
    else:
        _say_run(run, console)


def _say_data(dataset: Dataset, console: Console) -> None:
    if dataset.signature.columns:
        shape = f"{len(dataset.signature.columns)} columns of numbers"
    else:
        shape = " x ".join(map(str, dataset.signature.inputs[0].shape[1:])) + " images"
    labels = "" if dataset.anomalous is None else f", {int(dataset.anomalous.sum())} of them labelled anomalous"
    console.print(f"{escape(dataset.name)}: {len(dataset)} rows, {shape}{labels}")
    if dataset.constant_columns:
        names = escape(", ".join(dataset.constant_columns))
        console.print(f"[yellow]warning:[/] constant, so nothing to learn from: {names}")


def _say_run(run: Run, console: Console) -> None:
    record = run.record
    parts = ", ".join(f"{rows} {part}" for part, rows in record.rows.items())
    console.print(f"rows: {parts}; best at step {record.best['step']:g}")
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in record.test.items())
    console.print(f"test rows: {figures}")
    console.print(f"wrote {escape(str(run.path))}")
