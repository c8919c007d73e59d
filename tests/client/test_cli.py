"""The command line, as a person types it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import vaeserve
from vaeserve.cli import main
from vaeserve.local import LocalService

Done = subprocess.CompletedProcess[str]


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> Done:
    """Run `vaeserve` with these arguments."""
    command = [sys.executable, "-m", "vaeserve", *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, cwd=cwd,
                          env=os.environ | environment)  # fmt: skip


@pytest.mark.slow
def test_from_a_csv_to_scores(tmp_path: Path) -> None:
    """A CSV with labels is trained on, exported, inspected and scored, each command taking the last one's output."""
    generator = np.random.default_rng(0)
    normal = generator.normal(size=(400, 3)) @ np.array([[1, 2, 0], [0, 1, 1], [0, 0, 0.1]])
    rows = np.concatenate([normal, 4 * generator.normal(size=(20, 3))])
    labels = ["fine"] * 400 + ["fraud"] * 20
    lines = [f"{a},{b},{c},{label},id{i}" for i, ((a, b, c), label) in enumerate(zip(rows, labels, strict=True))]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,kind,id", *lines]) + "\n")
    options = ["--label", "kind", "--normal", "fine", "--drop", "id", "--set", "optimizer.max_steps=300"]
    trained = run("train", "rows.csv", "--out", "run", "--json", *options, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["auroc"] > 0.8
    exported = run("export", "run", "--repository", "models", "--name", "kinds", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert exported.stdout.strip() == "models/kinds/1"
    inspected = run("inspect", "models/kinds/1", cwd=tmp_path)
    assert "numeric: FLOAT32, rows x 3" in inspected.stdout
    assert json.loads(run("inspect", "models/kinds/1", "--json", cwd=tmp_path).stdout)["name"] == "kinds"
    flags = ["--bundle", "models/kinds/1", "--keep", "id", "--keep", "kind", "--top-features", 1, "--json"]
    scored = run("score", "rows.csv", "--out", "scores", *flags, cwd=tmp_path)
    assert json.loads(scored.stdout)["rows"] == 420
    table = pq.read_table(tmp_path / "scores").to_pydict()
    assert table["id"][:2] == ["id0", "id1"]
    by_kind = {kind: np.mean([a for a, k in zip(table["anomalous"], table["kind"], strict=True) if k == kind])
               for kind in ("fine", "fraud")}  # fmt: skip
    assert by_kind["fraud"] > by_kind["fine"] + 0.2


def test_version_and_help() -> None:
    """--version prints the version; --help lists the commands, and takes no component to do so."""
    assert run("--version").stdout == f"vaeserve {vaeserve.__version__}\n"
    listed = run("--help").stdout
    for command in ("train", "export", "serve", "score", "inspect", "health", "demo"):
        assert command in listed


def test_health_of_a_service(service: LocalService) -> None:
    """Health exits with 0 where the service or the model serves, and with 1 where nothing answers."""
    assert run("health", service.target).stdout == "SERVING\n"
    assert run("health", service.target, "--name", "table7").returncode == 0
    assert run("health", service.target, "--name", "fraud").returncode == 2
    gone = run("health", "127.0.0.1:1", "--timeout", 3)
    assert gone.returncode == 1
    assert "error: 127.0.0.1:1: " in gone.stderr


def test_scoring_through_a_service(service: LocalService, models: Any, rows_of: Any, tmp_path: Path) -> None:
    """`score --server` writes what `score --bundle` does."""
    bundle = models.bundles["image"].path
    np.save(tmp_path / "rows.npy", rows_of("image", 20))
    flags = ["--server", service.target, "--model", "image", "--out", "o.parquet"]
    done = run("score", "rows.npy", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    local = run("score", "rows.npy", "--bundle", bundle, "--out", "p.parquet", cwd=tmp_path)
    assert local.returncode == 0, local.stderr
    assert pq.read_table(tmp_path / "o.parquet") == pq.read_table(tmp_path / "p.parquet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "none.csv", "--out", "run"], "none.csv: no such file, folder or built-in data set"),
        (["train", "empty.csv", "--out", "run"], "empty.csv: no rows; expected one or more"),
        (["train", "dates.csv", "--out", "run"], "column 'when': dates, such as '2024-01-01'; expected numbers"),
        (["train", "few.csv", "--out", "run"], "few.csv: 2 normal rows; expected 10 or more"),
        (["train", "digits", "--out", "few.csv"], "few.csv: exists already; choose another --out"),
        (["train", "digits", "--out", "run", "--set", "optimizer.steps=1"], "optimizer.steps: no such setting"),
        (["train", "digits", "--out", "run", "--config", "none.toml"], "none.toml: not found; expected a TOML file"),
        (["train", "digits", "--out", "run", "--device", "tpu"], "--device tpu: expected auto, cpu or cuda"),
        (["train", "digits", "--out", "run", "--preset", "quick"], "--preset quick: expected one of textbook, fast"),
        (["train", "few.csv", "--out", "run", "--kind", "a"], "--kind a: expected COLUMN=numeric, COLUMN=binary or"),
        (["train", "digits"], "Missing option '--out'"),
        (["evaluate", "none", "digits"], "none: not a run: it has no run.json"),
        (["export", "none", "--repository", "models", "--name", "m"], "none: not a run: it has no run.json"),
        (["score", "few.csv", "--out", "o.parquet"], "expected either --bundle DIR, or --server HOST:PORT"),
        (["score", "--out", "o", "--bundle", "b"], "expected an INPUT, but for --finish"),
        (
            ["score", "few.csv", "--out", "o", "--bundle", "b", "--memory", "1 kg"],
            "--memory 1 kg: expected a size such",
        ),
        (
            ["score", "few.csv", "--out", "o", "--bundle", "b", "--memory", "1MB"],
            "--memory 1MB: expected 64MiB or more",
        ),
        (["score", "few.csv", "--out", "o", "--bundle", "b", "--top", "99999"], "--top 99999: expected 0 to 10000"),
        (
            ["score", "few.csv", "--out", "o", "--bundle", "b", "--shard", "3/3"],
            "--shard 3/3: expected I/N, with I from",
        ),
        (
            ["score", "few.csv", "--out", "o", "--bundle", "b", "--shard", "3"],
            "where the environment has JOB_COMPLETION",
        ),
        (
            ["score", "few.csv", "--out", "o", "--bundle", "b", "--engine", "spark"],
            "--engine spark: expected local or ray",
        ),
        (["score", "--finish", "--out", "none"], "--out none: has no _plan.json; expected the output of a job"),
        (["encode", "few.csv", "--out", "."], "in it; expected a folder that is new or empty"),
        (["score", "few.csv", "--out", "o.parquet", "--bundle", "none"], "none: not a bundle: it has no manifest.json"),
        (["score", "few.csv", "--out", "o.parquet", "--bundle", "b", "--bound", "tight"], "expected elbo or iwae"),
        (
            ["score", "in.parquet", "--out", "in.parquet", "--bundle", "b"],
            "--out in.parquet: is a file; expected a folder",
        ),
        (["train", "markup.csv", "--out", "run"], "column 'x[/b]': dates, such as '2024-01-01'"),
        (["train", "digits", "--out", "run", "--seed", "9" * 30], "--seed"),
        (["inspect", "none"], "none: not a bundle: it has no manifest.json"),
        (["calibrate", "none", "--data", "few.csv"], "none: not a bundle: it has no manifest.json"),
        (["compare", "none", "none", "--data", "few.csv"], "none: not a bundle: it has no manifest.json"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    """Each fault of the person's is one message that names it, exit code 2, no traceback, and nothing written."""
    (tmp_path / "empty.csv").write_text("a,b\n")
    (tmp_path / "dates.csv").write_text("a,when\n1,2024-01-01\n")
    (tmp_path / "few.csv").write_text("a\n1\n2\n")
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    (tmp_path / "markup.csv").write_text("x[/b]\n2024-01-01\n")
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vaeserve", *arguments])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert sorted(tmp_path.iterdir()) == before


def test_an_error_is_one_line_that_no_terminal_acts_on(tmp_path: Path) -> None:
    """Control characters in what an error names are shown as escapes, and letters of any alphabet as such."""
    (tmp_path / "rows.csv").write_text("größe\x1b[2J\n2024-01-01\n")
    done = run("train", "rows.csv", "--out", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "größe\\x1b[2J" in done.stderr.replace("\\\\", "\\")
    folder = tmp_path / "a\x1b[2J\nb"
    done = run("inspect", folder)
    assert f"{tmp_path}/a\\x1b[2J\\nb: not a bundle" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_a_terminal_cannot_show_is_no_failure(models: Any, tmp_path: Path) -> None:
    """Characters that the terminal's encoding hasn't are escaped, on stdout and on stderr."""
    bundle = tmp_path / "1"
    shutil.copytree(models.bundles["table3"].path, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text()) | {"density": "\N{CHECK MARK}"}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    shown = run("inspect", bundle, PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "in nats of \\u2713" in shown.stdout
    verified = run("verify", models.bundles["table3"].path, PYTHONIOENCODING="ascii")
    assert (verified.returncode, verified.stderr) == (0, "")
    gone = run("inspect", tmp_path / "\N{CHECK MARK}", PYTHONIOENCODING="ascii")
    assert gone.returncode == 2
    assert "\\u2713: not a bundle" in gone.stderr


@pytest.mark.parametrize("arguments", [["inspect"], ["inspect", "--json"], ["verify"]])
def test_a_closed_pipe_ends_it_in_silence(models: Any, arguments: list[str]) -> None:
    """Where who reads stdout has gone, nothing is said of it."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vaeserve", *arguments, str(models.bundles["mixed"].path)]
    try:
        done = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE, timeout=120)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
