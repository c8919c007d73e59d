"""`vaeserve demo`: the whole path, with the commands that anyone would type."""

import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vaeserve import Client, Scores
from vaeserve.errors import InternalError
from vaeserve.local import serve_locally
from vaeserve_training.data import Dataset
from vaeserve_training.evaluate import detection
from vaeserve_training.run import Run

DATA = {
    "breast-cancer": "a table of 30 measurements; malignant tumours are the anomalies",
    "digits": "8 x 8 images of written digits; the eights are the anomalies",
}
TOP_ROWS = 3
TOP_FEATURES = 5
TIMED_CALLS = 200


def run(out: Path, console: Console) -> None:
    """Train, export, serve, score and report each data set below `out`. Raises VaeserveError if a step fails."""
    started = time.monotonic()
    repository = out / "models"
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    runs = {name: out / "runs" / f"{name}-{stamp}" for name in DATA}
    out.mkdir(parents=True, exist_ok=True)
    for name, run_path in runs.items():
        console.rule(f"[bold]{name}[/]: {DATA[name]}", align="left")
        _vaeserve("train", name, "--out", run_path, console=console)
        _vaeserve("export", run_path, "--repository", repository, "--name", name, console=console)

    console.rule("[bold]serving both[/]", align="left")
    with serve_locally(repository, log=out / "server.log") as service, Client(service.target) as client:
        console.print(f"$ vaeserve serve --repository {repository}    (process {service.process.pid})")
        for name, run_path in runs.items():
            _show(client, name, Run.open(run_path).test(), console)
    console.print("The service has stopped.")

    console.rule("[bold]what the models learned[/]", align="left")
    for name, run_path in runs.items():
        _vaeserve("report", run_path, "--out", out / "reports" / name, console=console)
    console.print(f"\nAll of it took {time.monotonic() - started:.0f} s. Open the reports in a browser:")
    for name in runs:
        console.print(f"report: {out / 'reports' / name / 'index.html'}", soft_wrap=True)


def _vaeserve(*arguments: str | Path, console: Console) -> None:
    words = [str(argument) for argument in arguments]
    console.print(f"$ vaeserve {' '.join(words)}", soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", "vaeserve", *words], check=False)  # noqa: S603 - our own command
    if done.returncode:
        raise InternalError(f"vaeserve {words[0]} exited with {done.returncode}; expected 0")


def _show(client: Client, name: str, test: Dataset, console: Console) -> None:
    """Score the held-out rows of one data set through the service, and say how it went."""
    rows = next(iter(test.inputs.values()))
    anomalous = test.anomalous
    if anomalous is None:
        raise InternalError(f"{name}: the run has no labels; expected a demo's")
    scores = client.score(name, rows, top_features=TOP_FEATURES)
    worst = np.argsort(-scores.score)[:TOP_ROWS]

    console.print(f"\n[bold]{name}[/]: {len(rows)} held-out rows, {anomalous.sum()} of them anomalous")
    console.print(f"AUROC {detection(scores.score, anomalous)['auroc']:.3f}")
    console.print(_most_anomalous(worst, scores, anomalous))
    console.print(f"latency of a call with one row: {_latency(client, name, rows[:1]) * 1e3:.2f} ms (median)")


def _most_anomalous(rows: NDArray[np.intp], scores: Scores, anomalous: NDArray[np.bool_]) -> Table:
    table = Table("row", "label", "ELBO", "p-value", "top features, nats worse than usual", box=None)
    for row in rows:
        features = ", ".join(f"{a.feature} +{a.excess:.0f}" for a in scores.attributions[row][:TOP_ROWS])
        label = "anomalous" if anomalous[row] else "normal"
        table.add_row(
            str(row),
            label,
            f"{scores.elbo[row]:.1f}",
            f"{scores.p_value[row]:.3g}",
            escape(features),
        )
    return table


def _latency(client: Client, name: str, row: NDArray[Any]) -> float:
    """Return the median seconds of a call with one row."""
    seconds = []
    for _ in range(TIMED_CALLS):
        started = time.perf_counter()
        client.score(name, row)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds))
