"""`vaeserve train`, `evaluate` and `report`: from a source to a run, and from a run to figures, said as it goes."""

import hashlib
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from rich.console import Console
from rich.markup import escape

from vaeserve.config import load, parse_overrides
from vaeserve.errors import ConfigError, RunError
from vaeserve.progress import progress_bar
from vaeserve.source import open_source
from vaeserve_training.checkpoint import Checkpoints
from vaeserve_training.config import PRESETS, TrainConfig
from vaeserve_training.data import Dataset, load_dataset, read_dataset, split
from vaeserve_training.evaluate import estimate_log_likelihood, evaluate_rows, scorable_rows
from vaeserve_training.run import Run, refuse_target, write_run
from vaeserve_training.train import Evaluation, pick_device
from vaeserve_training.train import train as train_vae

# Rows that the log-likelihood is estimated on.
ESTIMATE_ROWS = 1000


def train(
    data: str,
    out: Path,
    *,
    preset: str,
    config: Path | None,
    overrides: Sequence[str],
    label: str | None,
    normal: str | None,
    drop: Sequence[str],
    kinds: Sequence[str],
    seed: int,
    device: str,
    resume: bool,
    console: Console,
    as_json: bool,
) -> None:
    """Train on `data` and write the run to `out`. Raises as what it calls does, before anything is written.

    To `resume` what is finished does nothing: who starts this again can't always know how far it came.
    """
    # What can be refused in a moment is, before what takes minutes.
    settings = settings_of(preset, config, overrides, kinds)
    finished = resume and (out / "run.json").exists()
    if not finished:
        refuse_target(out)
    Checkpoints.refuse(out, resume=resume)
    pick_device(device)
    leads = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started, one speaks and writes
    console.quiet = not leads
    dataset = load_dataset(
        open_source(data),
        label=label,
        normal=normal,
        drop=drop,
        kinds=settings.data.kinds,
        memory_bytes=int(settings.data.memory_gib * 2**30),
    )
    parts = split(dataset, settings.data, seed=seed)
    _say_data(dataset, console)
    resolved = settings.resolve(dataset.signature, rows=len(parts.train))  # refuses what isn't for such rows
    if finished:
        run = Run.open(out)
        _refuse_another(run, dataset, resolved, seed=seed)
        Checkpoints.beside(out, {}).remove()  # if it was killed after all but that
        console.print(f"{escape(str(out))}: finished before, and left as it is")
        _say(run, (), console, as_json=as_json)
        return
    labels = None if dataset.anomalous is None else hashlib.sha256(dataset.anomalous.tobytes()).hexdigest()
    identity = {"data": [dataset.sha256(), labels], "settings": _lasting(settings), "seed": seed}
    checkpoints = Checkpoints.beside(out, identity)
    if resume and not checkpoints.path.exists():
        console.print(f"[yellow]warning:[/] {escape(str(checkpoints.folder))}: no checkpoint to resume; starting anew")
    with progress_bar(console, "steps, held-out ELBO {task.fields[elbo]} nats") as progress:
        task = progress.add_task("training", total=settings.optimizer.max_steps, elbo="...")

        def show(evaluation: Evaluation) -> None:
            progress.update(task, completed=evaluation.step, elbo=f"{evaluation.elbo:.2f}")

        try:
            with _interruptible() as on_step:
                trained = train_vae(
                    parts, settings, seed=seed, device=device, checkpoints=checkpoints, on_step=on_step,
                    on_evaluation=show,
                )  # fmt: skip
        except KeyboardInterrupt:
            if checkpoints.path.exists():
                console.print(f"{escape(str(out))}: stopped; --resume goes on from the last checkpoint")
            raise
        progress.update(task, total=trained.evaluations[-1].step)  # it may have stopped early
    if not leads:
        return
    run = write_run(out, trained, dataset=dataset, split=parts, seed=seed)
    checkpoints.remove()
    _say(run, trained.warnings, console, as_json=as_json)


@contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Yield what raises KeyboardInterrupt once there was a Ctrl-C whose own got lost.

    As it does where it comes while a library's C code has Python look an attribute up, and takes any error for none.
    """
    interrupted = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        signal.default_int_handler(number, frame)

    def raise_again() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # and isn't ignored, as a shell has what it runs in the background
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield raise_again
    finally:
        signal.signal(signal.SIGINT, before)


def report(path: Path, out: Path, *, data: str | None, label: str | None, normal: str | None, console: Console) -> None:
    """Write the page of the run at `path` to the folder `out`. Raises as `Run.open` and `write_report` do."""
    # Here, for nothing else draws.
    from vaeserve_training.report.command import write_report
    from vaeserve_training.report.of_run import subject_of

    run = Run.open(path)
    write_report(
        lambda rows: subject_of(run, rows),
        run.record.signature,
        out,
        data=data,
        label=label,
        normal=normal,
        console=console,
    )


def evaluate(
    path: Path, data: str, *, label: str | None, normal: str | None, num_samples: int, console: Console, as_json: bool
) -> None:
    """Print how well the run at `path` explains the rows of `data`, and tells anomalous ones where labels exist."""
    run = Run.open(path)
    ensemble = run.ensemble()
    dataset = read_dataset(open_source(data), run.record.signature, label=label, normal=normal)
    figures = evaluate_rows(ensemble, dataset, seed=run.record.seed)
    normal_rows = scorable_rows(ensemble, dataset)
    if dataset.anomalous is not None:
        normal_rows &= ~dataset.anomalous
    some = np.random.default_rng(run.record.seed).permutation(np.flatnonzero(normal_rows))[:ESTIMATE_ROWS]
    estimate, error = estimate_log_likelihood(ensemble, dataset[np.sort(some)], samples=num_samples)
    figures[f"iwae_{num_samples}"] = estimate
    if math.isfinite(error):  # one row has none
        figures[f"iwae_{num_samples}_standard_error"] = error
    if as_json:
        print(json.dumps({"run": str(path), "rows": len(dataset), **figures}))
        return
    rows = f"{len(dataset)} rows"
    if dataset.anomalous is not None:
        rows += f", {int(dataset.anomalous.sum())} of them labelled anomalous"
    console.print(f"{escape(dataset.name)}: {rows}; means over the normal ones, in nats:")
    for name, value in figures.items():
        console.print(f"  {name.replace('_', ' '):<24} {value:.6g}")


def settings_of(preset: str, config: Path | None, overrides: Sequence[str], kinds: Sequence[str]) -> TrainConfig:
    """Return the settings of a preset, a file, the environment and flags; raises ConfigError for what can't be."""
    sections = _with_kinds(parse_overrides(overrides), kinds)
    return load(TrainConfig, file=config, overrides=sections, defaults=_preset(preset))


def _lasting(settings: TrainConfig) -> dict[str, dict[str, object]]:
    """Return the settings that a resumed training must share with what it goes on from.

    How fast to climb may change, for that is what a loss that is no number asks for; where rows lie changes nothing.
    """
    sections: dict[str, dict[str, object]] = settings.model_dump(mode="json")
    for name in ("learning_rate", "gradient_norm", "checkpoint_seconds"):
        del sections["optimizer"][name]
    del sections["data"]["memory_gib"]
    return sections


def _refuse_another(run: Run, dataset: Dataset, settings: TrainConfig, *, seed: int) -> None:
    """Raise RunError if a finished run is of other data, settings or another seed."""
    record = run.record
    identity = {
        "data": (record.data_sha256, dataset.sha256()),
        "settings": (_lasting(TrainConfig.model_validate(record.config)), _lasting(settings)),
        "seed": (record.seed, seed),
    }
    for name, (before, now) in identity.items():
        if before != now:
            raise RunError(
                f"{run.path}: a finished training, and the {name} changed since; choose another --out, or remove it"
            )


def _preset(name: str) -> Mapping[str, Mapping[str, object]]:
    for preset, settings in PRESETS.items():
        if preset == name:
            return settings
    raise ConfigError(f"--preset {name}: expected one of {', '.join(PRESETS)}")


def _with_kinds(sections: dict[str, dict[str, object]], kinds: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return the overrides with `COLUMN=KIND` assignments among them; raises ConfigError for one of another form."""
    stated: dict[str, str] = {}
    for assignment in kinds:
        column, equals, kind = assignment.rpartition("=")
        if not equals:
            raise ConfigError(f"--kind {assignment}: expected COLUMN=numeric, COLUMN=binary or COLUMN=categorical")
        stated[column] = kind
    if stated:
        sections.setdefault("data", {})["kinds"] = stated
    return sections


def _say_data(dataset: Dataset, console: Console) -> None:
    if dataset.signature.columns:
        shape = f"{len(dataset.signature.columns)} columns"
    else:
        shape = " x ".join(map(str, dataset.signature.inputs[0].shape[1:])) + " images"
    labels = "" if dataset.anomalous is None else f", {int(dataset.anomalous.sum())} of them labelled anomalous"
    console.print(f"{escape(dataset.name)}: {len(dataset)} rows, {shape}{labels}")
    for what in ("numeric", "binary", "categorical", "constant"):
        names = [report.name for report in dataset.reports if report.what == what]
        if names:
            console.print(f"  {what}: {escape(_some(names))}")
    missing = [column.name for column in dataset.signature.columns if column.nullable]
    if missing:
        console.print(f"  with missing values: {escape(_some(missing))}")


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def _say(run: Run, warnings: Sequence[str], console: Console, *, as_json: bool) -> None:
    for warning in warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}")
    if as_json:
        print(json.dumps({"run": str(run.path), **run.record.test, "warnings": list(warnings)}))
        return
    record = run.record
    parts = ", ".join(f"{rows} {part}" for part, rows in record.rows.items())
    console.print(f"rows: {parts}; best at step {record.best['step']:g}")
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in record.test.items())
    console.print(f"test rows: {figures}")
    console.print(f"wrote {escape(str(run.path))}")
