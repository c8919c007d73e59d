"""A sweep of digits, small and quick, as the command runs it."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vaeserve.errors import ConfigError, RunError
from vaeserve_training.run import Run
from vaeserve_training.sweep.command import sweep
from vaeserve_training.sweep.verdict import Verdict

ROOT = Path(__file__).parents[3]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
QUICK = {
    "model.hidden": "[64]", "model.latent_dim": 8, "optimizer.max_steps": 300, "optimizer.warmup_steps": 20,
    "optimizer.learning_rate": 0.005, "objective.kl_warmup": 0.1,
}  # fmt: skip
BETAS = "0.01,1,30"


def sets(settings: dict[str, object]) -> list[str]:
    """Return settings as the command takes them."""
    return [f"{name}={value}" for name, value in (QUICK | settings).items()]


def call(out: Path, *, data: str = "digits", settings: dict[str, object] | None = None, **given: Any) -> str:
    """Sweep as the command does, in this process; return what was said."""
    said = io.StringIO()
    options: dict[str, Any] = {
        "betas": BETAS, "compare": None, "preset": "default", "config": None, "label": None, "normal": None, "drop": [],
        "kinds": [], "seed": 0, "device": "cpu", "jobs": 1, "resume": False, "as_json": False,
    } | given  # fmt: skip
    sweep(data, out, overrides=sets(settings or {}), console=Console(file=said, width=200), **options)
    return said.getvalue()


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    """Return what `sweep.json` says of each model."""
    return {row["name"]: row for row in json.loads((out / "sweep.json").read_text())["rows"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished sweep with the autoencoder beside it, and what the command said."""
    out = tmp_path_factory.mktemp("sweeps") / "sweep"
    return out, call(out, compare="autoencoder")


@pytest.fixture
def copied(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished[0], tmp_path / "sweep"))


def test_a_sweep_shows_the_trade_off(finished: tuple[Path, str]) -> None:
    """From a light weight to a heavy one the KL, the space's emptiness and what is explained fall, and are named."""
    rows = rows_of(finished[0])
    light, one, heavy = (rows[f"beta-{beta}"] for beta in BETAS.split(","))
    for figure in ("kl", "emptiness", "explained", "log_likelihood"):
        assert light[figure] > one[figure] > heavy[figure]
    assert light["overlap"] < one["overlap"] < heavy["overlap"]
    assert one["elbo"] > max(light["elbo"], heavy["elbo"])
    assert one["sample_quality"] > max(light["sample_quality"], heavy["sample_quality"])
    assert [row["verdict"] for row in (light, one, heavy)] == [
        Verdict.ISOLATED, Verdict.BALANCED, Verdict.COLLAPSED,
    ]  # fmt: skip
    assert heavy["active_units"] == 0
    assert 0.5 < one["auroc"] <= 1


def test_the_autoencoder_is_measured_by_what_it_has(finished: tuple[Path, str]) -> None:
    """A point has no KL and no verdict; it rebuilds more sharply, and what N(0, I) makes of it is further off."""
    rows = rows_of(finished[0])
    autoencoder, one = rows["autoencoder"], rows["beta-1"]
    assert autoencoder["beta"] is None
    assert [autoencoder[figure] for figure in ("elbo", "kl", "emptiness", "active_units", "verdict")] == [None] * 5
    assert autoencoder["reconstruction_error"] < one["reconstruction_error"]
    assert autoencoder["prior_remoteness"] > one["prior_remoteness"]
    assert autoencoder["sample_quality"] < one["sample_quality"]
    assert Run.open(finished[0] / "runs" / "autoencoder").record.config["model"]["posterior"] == "point"


def test_the_runs_are_ordinary_ones(finished: tuple[Path, str]) -> None:
    """Each model's run can be opened, has the weight in its settings and the AUROC that the table says."""
    for name, row in rows_of(finished[0]).items():
        run = Run.open(finished[0] / row["run"])
        assert run.path.name == name
        if row["beta"] is not None:
            assert run.record.config["objective"]["beta"] == row["beta"]
        assert run.record.test["auroc"] == row["auroc"]
        assert run.ensemble().member.latent_dim == 8


def test_the_command_says_the_table_and_the_verdicts(finished: tuple[Path, str]) -> None:
    """On a terminal and in table.md there is a row a model; verdicts are said with the weights they are of."""
    out, said = finished
    assert re.search(r"^beta 0\.01 +-?\d+\.\d", said, re.MULTILINE)
    assert "isolated clusters, sharp reconstruction, poor generation: beta 0.01\n" in said
    assert "balanced: beta 1\n" in said
    assert "posterior collapse: beta 30\n" in said
    table = (out / "table.md").read_text().splitlines()
    assert table[0].startswith("|  | ELBO<br>(nats) | ")
    assert [line.split(" | ")[0] for line in table[2:6]] == ["| beta 0.01", "| beta 1", "| beta 30", "| autoencoder"]
    assert len({line.count("|") for line in table[:6]}) == 1
    assert "- balanced: beta 1" in table[6:]


def test_two_processes_make_the_same_table(finished: tuple[Path, str], tmp_path: Path) -> None:
    """Side by side the models have the same bits, and the sweep the same figures, as one after the other."""
    out = tmp_path / "sweep"
    call(out, compare="autoencoder", jobs=2)
    for name in ("sweep.json", "table.md"):
        assert (out / name).read_bytes() == (finished[0] / name).read_bytes()
    for name in ("runs/beta-1/weights.safetensors", "measured/beta-1/figures.json"):
        assert (out / name).read_bytes() == (finished[0] / name).read_bytes()


def test_what_is_finished_is_not_done_again(copied: Path) -> None:
    """A sweep that goes on trains and measures what isn't there alone, and may be added to."""
    before = {path: path.stat().st_mtime_ns for path in copied.glob("*/*/*")}
    shutil.rmtree(copied / "measured" / "beta-1")
    shutil.rmtree(copied / "runs" / "beta-30")
    shutil.rmtree(copied / "measured" / "beta-30")
    table = (copied / "table.md").read_bytes()
    (copied / "sweep.json").unlink()
    call(copied, resume=True, compare="autoencoder")
    after = {path: path.stat().st_mtime_ns for path in copied.glob("*/*/*")}
    changed = {path.parent.relative_to(copied).as_posix() for path in after if after[path] != before[path]}
    assert changed == {"measured/beta-1", "runs/beta-30", "measured/beta-30"}
    assert (copied / "table.md").read_bytes() == table


def test_a_sweep_of_fewer_weights_tells_of_those(copied: Path) -> None:
    """Going on with some of the weights, nothing is trained, and the table has those alone, each once."""
    said = call(copied, resume=True, betas="1, 0.01,1")
    assert list(rows_of(copied)) == ["beta-0.01", "beta-1"]
    assert "posterior collapse: none; it takes no active unit, or less than 5% of the variance" in said


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": 3}, "seed was 0 and is 3"),
        ({"settings": {"model.latent_dim": 9}}, "model.latent_dim was 8 and is 9"),
        ({"data": "breast-cancer", "settings": {"model.hidden": "[64]"}}, "data was digits and is breast-cancer"),
        ({"resume": False}, "holds a sweep; expected --resume"),
    ],
)
def test_other_options_or_rows_are_refused(finished: tuple[Path, str], given: dict[str, Any], message: str) -> None:
    """A sweep goes on with the rows, settings and seed that it began with, or not at all."""
    before = (finished[0] / "sweep.json").read_bytes()
    with pytest.raises(RunError, match=re.escape(message)):
        call(finished[0], **({"resume": True} | given))
    assert (finished[0] / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"betas": "1,x"}, "--betas 1,x: 'x'; expected numbers from 0 up"),
        ({"betas": "1,-1"}, "--betas 1,-1: '-1'; expected"),
        ({"betas": "inf"}, "--betas inf: 'inf'; expected"),
        ({"betas": ""}, "--betas : ''; expected"),
        ({"compare": "pca"}, "--compare pca: expected autoencoder"),
        ({"settings": {"objective.beta": 3}}, "--set objective.beta: is what a sweep varies; expected --betas"),
        ({"settings": {"model.posterior": "point"}}, "model.posterior = point: has no KL to weigh"),
        ({"settings": {"model.likelihood": "student"}}, "model.likelihood"),
        ({"device": "tpu"}, "--device tpu: expected auto, cpu or cuda"),
    ],
)
def test_what_cannot_be_swept_is_refused_at_once(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    """Bad options are named before anything is read or written."""
    with pytest.raises(ConfigError, match=re.escape(message)):
        call(tmp_path / "sweep", **given)
    assert not any(tmp_path.iterdir())


def test_figures_that_cannot_be_read_are_named(copied: Path) -> None:
    """What was measured and is damaged is named with what to remove."""
    (copied / "measured" / "beta-1" / "figures.json").write_text("{}")
    with pytest.raises(RunError, match=r"beta-1/figures.json: not what a sweep wrote"):
        call(copied, resume=True)
    (copied / "measured" / "beta-0.01" / "shown.npz").write_bytes(b"PK")
    with pytest.raises(RunError, match=r"beta-0.01/shown.npz: not what a sweep wrote"):
        call(copied, resume=True, betas="0.01")


def command(out: Path, *flags: str) -> list[str]:
    """Return the command that sweeps for a moment, and writes a checkpoint at every evaluation."""
    settings = sets({"optimizer.checkpoint_seconds": 0, "optimizer.evaluate_every": 25})
    words = [part for setting in settings for part in ("--set", setting)]
    return [
        sys.executable, "-m", "vaeserve", "sweep", "digits", "--out", str(out), "--betas", BETAS, "--device", "cpu",
        "--jobs", "2", *words, *flags,
    ]  # fmt: skip


def stopped(arguments: list[str], ready: Callable[[], bool], sent: signal.Signals, *, log: Path) -> int:
    """Start a command and send it a signal when `ready`; return how it ended. What it says is in `log`."""
    with (
        log.open("wb") as said,
        subprocess.Popen(
            arguments, stdout=subprocess.DEVNULL, stderr=said, env=ENVIRONMENT, start_new_session=True
        ) as process,
    ):
        deadline = time.monotonic() + 240
        while process.poll() is None and not ready():
            assert time.monotonic() < deadline
            os.sched_yield()
        if sent is signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does
        else:
            process.send_signal(sent)
    return process.returncode


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_stopped_sweep_goes_on(tmp_path: Path) -> None:
    """Killed, terminated or interrupted in the midst of trainings, and resumed, a sweep writes the same table.

    What was trained by then isn't lost: runs are kept, and a training goes on from its checkpoint.
    """
    whole, out = tmp_path / "whole", tmp_path / "sweep"
    undisturbed = subprocess.run(command(whole), check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert "balanced: beta 1\n" in undisturbed.stderr
    checkpoint = out / "runs" / "beta-1.training" / "checkpoint.pt"
    flags = ["--resume"]
    log = tmp_path / "log"
    assert stopped(command(out, *flags), checkpoint.exists, signal.SIGTERM, log=log) == -signal.SIGTERM
    assert checkpoint.exists()
    seen = checkpoint.stat().st_mtime_ns
    moved = stopped(command(out, *flags), lambda: checkpoint.stat().st_mtime_ns > seen, signal.SIGKILL, log=log)
    assert moved == -signal.SIGKILL
    finished = out / "measured" / "beta-0.01"
    assert stopped(command(out, *flags), finished.exists, signal.SIGINT, log=log) in (1, 130)
    assert finished.exists()
    assert "stopped; --resume goes on with it" in " ".join(log.read_text().split())
    done = subprocess.run(command(out, *flags), check=True, env=ENVIRONMENT, capture_output=True, text=True)
    assert "no checkpoint" not in done.stderr
    assert (out / "table.md").read_bytes() == (whole / "table.md").read_bytes()
    assert (out / "sweep.json").read_bytes() == (whole / "sweep.json").read_bytes()
    for name in ("beta-0.01", "beta-1", "beta-30"):
        weights = [sweep / "runs" / name / "weights.safetensors" for sweep in (out, whole)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not list(out.rglob("*.training"))
    assert not list(out.rglob("*.partial"))
