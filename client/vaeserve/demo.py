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
from vaeserve_training.pictures import SHOWN, attribution_bars, image_grid, score_histogram
from vaeserve_training.run import Run

DATA = {
    "breast-cancer": "a table of 30 measurements; malignant tumours are the anomalies",
    "digits": "8 x 8 images of written digits; the eights are the anomalies",
}
TOP_ROWS = 3
TOP_FEATURES = 5
TIMED_CALLS = 200


def run(out: Path, console: Console) -> None:
    """Train, export, serve and score each data set below `out`. Raises VaeserveError if a step fails."""
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
            _show(client, name, Run.open(run_path).test(), out, console)
    console.print(f"\nThe service has stopped. All of it took {time.monotonic() - started:.0f} s.")


def _vaeserve(*arguments: str | Path, console: Console) -> None:
    words = [str(argument) for argument in arguments]
    console.print(f"$ vaeserve {' '.join(words)}", soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", "vaeserve", *words], check=False)  # noqa: S603 - our own command
    if done.returncode:
        raise InternalError(f"vaeserve {words[0]} exited with {done.returncode}; expected 0")


def _show(client: Client, name: str, test: Dataset, out: Path, console: Console) -> None:
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
    for picture in _pictures(client, name, rows, scores, anomalous, out):
        console.print(f"picture: {picture}", soft_wrap=True)


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


def _pictures(
    client: Client, name: str, rows: NDArray[Any], scores: Scores, anomalous: NDArray[np.bool_], out: Path
) -> list[Path]:
    flagged = scores.score[scores.anomalous]
    threshold = float(flagged.min()) if len(flagged) else float(scores.score.max())
    histogram = score_histogram(
        out / f"{name}-scores.png",
        scores.score,
        anomalous,
        threshold=threshold,
        title=f"{name}: scores of held-out rows",
    )
    worst = np.argsort(-scores.score)[:SHOWN]
    if rows.ndim == 4:
        images = client.reconstruct(name, rows[worst]).outputs["image"]
        title = f"{name}: the most anomalous rows"
        return [
            histogram,
            image_grid(out / f"{name}-rows.png", rows[worst], images, scores[worst], title=title),
        ]
    worst = worst[:TOP_ROWS]
    names = [f"row {row}: ELBO {scores.elbo[row]:.0f} nats" for row in worst]
    return [histogram, attribution_bars(out / f"{name}-rows.png", scores[worst].attributions, names)]
