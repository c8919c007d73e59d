"""`vaeserve sweep`: from a source to the table of what the weight of the KL trades for what."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import TaskID
from rich.table import Table

from vaeserve.errors import ConfigError
from vaeserve.progress import progress_bar
from vaeserve_training.command import settings_of
from vaeserve_training.data import split
from vaeserve_training.report.page import write
from vaeserve_training.sweep import plan
from vaeserve_training.sweep.case import AUTOENCODER, Case, Rows, fingerprint
from vaeserve_training.sweep.page import page_of
from vaeserve_training.sweep.sweep import Sweep, check
from vaeserve_training.sweep.sweep import sweep as sweep_weightings
from vaeserve_training.train import pick_device


def sweep(
    data: str,
    out: Path,
    *,
    betas: str,
    compare: str | None,
    preset: str,
    config: Path | None,
    overrides: Sequence[str],
    label: str | None,
    normal: str | None,
    drop: Sequence[str],
    kinds: Sequence[str],
    seed: int,
    device: str,
    jobs: int | None,
    resume: bool,
    console: Console,
    as_json: bool,
) -> None:
    """Sweep weightings on `data` in the folder `out`. Raises as what it calls does, before anything is trained."""
    weights = _betas(betas)
    if compare not in (None, AUTOENCODER):
        raise ConfigError(f"--compare {compare}: expected {AUTOENCODER}")
    if any(override.partition("=")[0].strip() == "objective.beta" for override in overrides):
        raise ConfigError("--set objective.beta: is what a sweep varies; expected --betas")
    settings = settings_of(preset, config, overrides, kinds)
    check(settings, weights)
    plan.refuse(out, resume=resume)
    pick_device(device)
    rows = Rows(data, label, normal, tuple(drop), sha256="")
    dataset = rows.load(settings)
    settings.resolve(dataset.signature, rows=len(split(dataset, settings.data, seed=seed).train))
    rows = replace(rows, sha256=fingerprint(dataset))
    with progress_bar(console) as progress:
        tasks: dict[str, TaskID] = {}

        def show(case: Case, step: int) -> None:
            if case.name not in tasks:
                tasks[case.name] = progress.add_task(str(case), total=settings.optimizer.max_steps)
            progress.update(tasks[case.name], completed=step)

        try:
            done = sweep_weightings(
                out, rows, dataset, settings, betas=weights, autoencoder=compare == AUTOENCODER, seed=seed,
                device=device, jobs=jobs, resume=resume, on_step=show,
            )  # fmt: skip
        except KeyboardInterrupt:
            console.print(f"{escape(str(out))}: stopped; --resume goes on with it")
            raise
    page = write(page_of(done), out / "report")
    if as_json:
        print(json.dumps({"sweep": str(out), "page": str(page), **done.as_json()}))
    else:
        _say(done, page, console)


def _betas(text: str) -> list[float]:
    """Return the weights of the KL in `text`; raises ConfigError for one that isn't a number from 0 up."""
    betas = []
    for part in text.split(","):
        try:
            beta = float(part)
        except ValueError:
            beta = -1.0
        if not 0 <= beta < float("inf"):
            raise ConfigError(f"--betas {text}: {part.strip()!r}; expected numbers from 0 up, such as 0.01,0.1,1,4,20")
        betas.append(beta)
    return betas


def _say(done: Sweep, page: Path, console: Console) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for head in done.heads:
        table.add_column(head.replace(" ", "\n"), justify="right", no_wrap=True)
    for entry in done.entries:
        table.add_row(str(entry.case), *done.cells(entry))
    console.print(table)
    for said in done.said():
        console.print(said)
    console.print(f"sample quality of as many training rows: {done.within_reach:.2f}")
    console.print(f"wrote {escape(str(done.out / 'sweep.json'))}, table.md beside it, and {escape(str(page))}")
