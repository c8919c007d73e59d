"""`vaeserve train` and `vaeserve evaluate`, as a person runs them."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from rich.console import Console

from vaeserve.errors import OperatorError, RunError
from vaeserve_training.command import evaluate, train
from vaeserve_training.run import Run

VAESERVE = Path(sys.executable).with_name("vaeserve")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
SMALL = {
    "model.hidden": "[16]", "model.latent_dim": 2, "model.exemplars": 50, "model.scaling": '["standard", "robust"]',
    "ensemble.size": 2, "optimizer.max_steps": 60, "optimizer.evaluate_every": 20,
}  # fmt: skip

Done = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with numbers, a gap here and there, categories, and a label."""
    generator = np.random.default_rng(0)
    rows, anomalies = 300, 30
    size = generator.normal(size=rows + anomalies)
    weight = 2 * size + 0.3 * generator.normal(size=len(size))
    anomalous = np.arange(len(size)) >= rows
    weight[anomalous] += 8
    colour = np.where(size > 0, "red", "blue")
    columns = {
        "size": size.round(4), "weight": pa.array(weight.round(4), mask=np.arange(len(size)) % 11 == 0),
        "colour": colour, "label": anomalous.astype(int),
    }  # fmt: skip
    path = tmp_path_factory.mktemp("data") / "table.csv"
    pa.csv.write_csv(pa.table(columns), path)
    return path


def command(table: Path, out: Path, *flags: str, seed: int = 1, **settings: object) -> list[str]:
    """Return the command that trains on the table for a moment."""
    changed = {name.replace("__", "."): value for name, value in settings.items()}
    sets = [part for name, value in (SMALL | changed).items() for part in ("--set", f"{name}={value}")]
    return [
        str(VAESERVE), "train", str(table), "--out", str(out), "--label", "label", "--seed", str(seed),
        "--device", "cpu", *sets, *flags,
    ]  # fmt: skip


def call(arguments: list[str], **options: Any) -> Done:
    """Run a command to its end."""
    return subprocess.run(
        arguments, check=False, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, **options
    )


def call_here(table: Path, out: Path, *, seed: int = 1, preset: str = "default", **options: Any) -> str:
    """Train as the command does, in this process; return what was said."""
    sets = [f"{name}={value}" for name, value in (SMALL | options.pop("settings", {})).items()]
    said = io.StringIO()
    given: dict[str, Any] = {"label": "label", "normal": None, "drop": [], "kinds": [], "device": "cpu"} | options
    train(
        str(table), out, preset=preset, config=None, overrides=sets, seed=seed, resume=given.pop("resume", False),
        console=Console(file=said, width=200), as_json=False, **given,
    )  # fmt: skip
    return " ".join(said.getvalue().split())


def test_a_finished_training_is_not_done_again(table: Path, run: Path, tmp_path: Path) -> None:
    """To resume what is finished says what it came to, writes nothing, and refuses what would be another run."""
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()}
    assert "finished before, and left as it is" in call_here(table, run, resume=True)
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(table.read_text().splitlines(keepends=True)[:200]))
    others: dict[str, dict[str, Any]] = {"seed": {"seed": 2}, "settings": {"settings": {"objective.beta": 0.5}}}
    for of, given in others.items():
        with pytest.raises(
            RunError, match=f"run: a finished training, and the {of} changed since; choose another --out"
        ):
            call_here(table, run, resume=True, **given)
    with pytest.raises(RunError, match="run: a finished training, and the data changed since"):
        call_here(fewer, run, resume=True)
    with pytest.raises(RunError, match="exists already"):
        call_here(table, run)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in run.iterdir()} == before


def weights(run: Path) -> bytes:
    """Return the bytes of a run's weights."""
    return (run / "weights.safetensors").read_bytes()


def kill_when(arguments: list[str], ready: Callable[[], bool]) -> bool:
    """Start a command and kill it at once when `ready`; return False if it ended before."""
    null = subprocess.DEVNULL
    with subprocess.Popen(arguments, stdout=null, stderr=null, env=ENVIRONMENT) as process:
        try:
            deadline = time.monotonic() + 120
            while not ready():
                assert time.monotonic() < deadline
                if process.poll() is not None:
                    return False
                os.sched_yield()
        finally:
            process.kill()
    return process.returncode == -signal.SIGKILL


def test_who_interrupts_a_training_is_told_how_it_goes_on(table: Path, tmp_path: Path) -> None:
    """Ctrl-C leaves the last checkpoint, and says so."""
    checkpoint = tmp_path / "run.training" / "checkpoint.pt"
    arguments = command(
        table, tmp_path / "run", "--set", "optimizer.checkpoint_seconds=0", "--set", "optimizer.max_steps=1000000"
    )
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True) as process:
        deadline = time.monotonic() + 120
        while not checkpoint.exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode in (1, 130)
    assert "run: stopped; --resume goes on from the last checkpoint" in " ".join(said.split())
    assert checkpoint.exists()


def test_an_interrupt_that_gets_lost_still_stops_a_training(table: Path, tmp_path: Path) -> None:
    """Other libraries' C code may take a KeyboardInterrupt for an attribute that isn't there."""
    losing = """
import os, signal
from vaeserve.cli import main
from vaeserve_training.checkpoint import Checkpoints
save = Checkpoints.save
def save_and_lose(self, here):
    save(self, here)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pass
Checkpoints.save = save_and_lose
main()
"""
    arguments = command(table, tmp_path / "run", optimizer__checkpoint_seconds=0, optimizer__max_steps=1_000_000)
    done = call([sys.executable, "-c", losing, *arguments[1:]])
    assert done.returncode == 130
    assert "run: stopped; --resume goes on from the last checkpoint" in " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command that nobody disturbed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    done = call(command(table, out))
    assert done.returncode == 0, done.stderr
    assert not out.with_name("run.training").exists()
    return out


def test_training_goes_on_after_a_kill(table: Path, run: Path, tmp_path: Path) -> None:
    """Killed once a checkpoint is there, and resumed, a training writes the bits of the one that nobody disturbed.

    With other data, settings or another seed it doesn't go on, nor is it begun anew unless that is asked for.
    """
    out = tmp_path / "run"
    arguments = command(table, out, "--set", "optimizer.checkpoint_seconds=0")
    checkpoint = tmp_path / "run.training" / "checkpoint.pt"
    assert kill_when(arguments, checkpoint.exists)
    assert not out.exists()
    every: dict[str, Any] = {"settings": {"optimizer.checkpoint_seconds": 0}, "resume": True}
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(table.read_text().splitlines(keepends=True)[:200]))
    with pytest.raises(RunError, match=r"run\.training: holds an unfinished training; expected --resume"):
        call_here(table, out, **every | {"resume": False})
    with pytest.raises(RunError, match="the seed changed since"):
        call_here(table, out, seed=2, **every)
    with pytest.raises(RunError, match="the settings changed since"):
        call_here(table, out, **every | {"settings": {"optimizer.checkpoint_seconds": 0, "objective.beta": 0.5}})
    with pytest.raises(RunError, match="the data changed since"):
        call_here(fewer, out, **every)
    resumed = call([*arguments, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert weights(out) == weights(run)
    assert not checkpoint.parent.exists()


@pytest.mark.slow
def test_any_number_of_kills_changes_no_bit(table: Path, tmp_path: Path) -> None:
    """Killed at one evaluation after another, until it gets through, a training ends in the same bits."""
    settings = {"optimizer__max_steps": 2000, "optimizer__patience": 1000, "optimizer__checkpoint_seconds": 0}
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert call(command(table, whole, **settings)).returncode == 0
    checkpoint = tmp_path / "run.training" / "checkpoint.pt"
    seen: set[int] = set()

    def moved() -> bool:
        try:
            written = checkpoint.stat().st_mtime_ns
        except FileNotFoundError:  # not yet, or no more: the end of a training removes it
            return False
        known = not seen or written not in seen
        seen.add(written)
        return known and len(seen) % 7 == 0

    kills = 0
    while kill_when([*command(table, out, **settings), "--resume"], moved):
        kills += 1
    assert kills >= 3
    assert weights(out) == weights(whole)


def full_disk(size: int) -> Callable[[], None]:
    """Return what lets a process write no file larger than `size` bytes, as a full disk would."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint_seconds", [0, 1000])
def test_a_full_disk_is_told_and_nothing_is_half_written(
    table: Path, run: Path, tmp_path: Path, checkpoint_seconds: int
) -> None:
    """Where a checkpoint or the run can't be written, the command says so, leaves nothing in part, and can go on."""
    out = tmp_path / "run"
    arguments = command(table, out, "--set", f"optimizer.checkpoint_seconds={checkpoint_seconds}")
    done = call(arguments, preexec_fn=full_disk(4096))
    assert done.returncode == 2
    assert "File too large" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert call([*arguments, "--resume"]).returncode == 0
    assert weights(out) == weights(run)


@pytest.mark.slow
def test_a_run_that_found_no_room_is_finished_with_resume(table: Path, run: Path, tmp_path: Path) -> None:
    """With room for checkpoints but none for the run, the last checkpoint is kept and `--resume` writes the run."""
    out = tmp_path / "run"
    arguments = command(table, out, "--set", "optimizer.checkpoint_seconds=0")
    checkpoint = tmp_path / "run.training" / "checkpoint.pt"
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(arguments, stdout=null, stderr=pipe, text=True, env=ENVIRONMENT) as process:
        try:
            while not checkpoint.exists() and process.poll() is None:
                os.sched_yield()
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
            _, said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 2
    assert "File too large" in " ".join(said.split())
    assert [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint.pt"]
    assert call([*arguments, "--resume"]).returncode == 0
    assert weights(out) == weights(run)


@pytest.mark.slow
def test_two_processes_train_one_model(table: Path, tmp_path: Path) -> None:
    """Under torchrun two processes share each batch, and write one run: what one process learns, up to rounding."""
    settings = {"optimizer__batch_rows": 64, "optimizer__max_steps": 40}
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert call(command(table, alone, **settings)).returncode == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = call([*launch, *command(table, together, "--json", **settings)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"run"') == 1
    one, two = (Run.open(path).ensemble().state_dict() for path in (alone, together))
    for name, tensor in one.items():
        np.testing.assert_allclose(two[name].numpy(), tensor.numpy(), atol=1e-4, rtol=1e-3, err_msg=name)
    losses = [-evaluation["train_bound"] for evaluation in Run.open(together).evaluations()]
    assert losses[-1] < losses[0]


def test_training_says_what_it_takes_the_columns_for(table: Path, tmp_path: Path) -> None:
    """Kinds, gaps and labels are said aloud, and the run's figures and place."""
    said = call_here(table, tmp_path / "run")
    for words in (
        "330 rows, 3 columns, 30 of them labelled anomalous", "numeric: size, weight", "categorical: colour",
        "with missing values: weight", "best at step", "auroc",
    ):  # fmt: skip
        assert words in said, said


def figures_of(run: Path, data: Path, capsys: pytest.CaptureFixture[str], label: str | None = None) -> dict[str, Any]:
    """Evaluate a run in this process; return what a program reads."""
    evaluate(run, str(data), label=label, normal=None, num_samples=16, console=Console(quiet=True), as_json=True)
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    return figures


def test_a_run_is_evaluated_as_text_and_as_json(table: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bounds, the IWAE estimate with its error, latents in use and the detection, for a person and a program."""
    figures = figures_of(run, table, capsys, "label")
    assert figures["rows"] == 330
    assert figures["auroc"] > 0.9
    assert figures["elbo"] < figures["iwae_16"] + 3 * figures["iwae_16_standard_error"]
    assert {"log_likelihood", "kl", "active_units", "mutual_information", "average_precision"} <= set(figures)
    text = call([str(VAESERVE), "evaluate", str(run), str(table), "--label", "label", "--num-samples", "16"])
    said = " ".join(text.stderr.split() + text.stdout.split())
    assert "330 rows, 30 of them labelled anomalous; means over the normal ones, in nats" in said
    assert f"auroc {figures['auroc']:.6g}" in said
    unlabelled = figures_of(run, table, capsys)
    assert "auroc" not in unlabelled
    assert unlabelled["elbo"] < figures["elbo"]


def test_missing_columns_and_unseen_categories_at_evaluation(
    table: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gaps that weren't learned are counted as unscorable, unseen categories are scored, absent columns refused."""
    lines = table.read_text().splitlines()
    changed = [lines[0], *(line.replace("red", "violet") for line in lines[1:40])]
    changed[1] = "," + changed[1].split(",", 1)[1]
    (tmp_path / "changed.csv").write_text("\n".join(changed) + "\n")
    figures = figures_of(run, tmp_path / "changed.csv", capsys)
    assert (figures["rows"], figures["unscorable"]) == (39, 1)
    assert np.isfinite(figures["elbo"])
    (tmp_path / "less.csv").write_text("\n".join(line.split(",", 1)[1] for line in lines) + "\n")
    with pytest.raises(OperatorError, match="'size'"):
        figures_of(run, tmp_path / "less.csv", capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "textbok"}, "--preset textbok: expected one of textbook, fast, default, quality"),
        ({"settings": {"objective.betta": 1}}, "objective.betta: no such setting; did you mean beta?"),
        ({"kinds": ["size"]}, "--kind size: expected COLUMN=numeric"),
        ({"device": "tpu"}, "--device tpu: expected auto, cpu or cuda"),
        ({"label": "lable"}, "no column 'lable'"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    table: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    """Unknown presets, settings, kinds, devices and columns are refused, and nothing is written."""
    with pytest.raises(OperatorError, match=re.escape(message)):
        call_here(table, tmp_path / "run", **options)
    assert not list(tmp_path.iterdir())
