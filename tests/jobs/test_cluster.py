"""Jobs on a Ray cluster: a real one, of two workers on this machine."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import RunJob, parts
from vaeserve.scores import ScoreOptions
from vaeserve_jobs import Score


@pytest.mark.slow
def test_ray_writes_what_this_process_does(
    run_job: RunJob, models: Any, table_file: Path, table_rows: Any, tmp_path: Path
) -> None:
    """Two workers on a Ray cluster make the same bytes, and what they say is added up the same."""
    del table_rows
    whole = run_job(table_file, tmp_path / "local", task=Score(top=5), keep=["id"], shard_rows=1000)
    flags = ["--bundle", models.bundles["table7"].path, "--keep", "id", "--top", 5, "--shard-rows", 1000, "--json"]
    command = [sys.executable, "-m", "vaeserve", "score", table_file, "--out", "ray", "--engine", "ray", "--workers", 2]
    done = subprocess.run(
        [str(part) for part in (*command, *flags)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert parts(tmp_path / "ray") == parts(tmp_path / "local")
    assert (tmp_path / "ray" / "_top.jsonl").read_bytes() == (tmp_path / "local" / "_top.jsonl").read_bytes()
    assert {**json.loads(done.stdout), "run": 0, "out": 0} == {**whole, "run": 0, "out": 0}
    progress = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert progress[-1]["shards_done"] == 7
    broken = bytearray(table_file.read_bytes())
    broken[len(broken) // 2 : len(broken) // 2 + 5000] = bytes(5000)
    (tmp_path / "broken.parquet").write_bytes(broken)
    command[4], command[6] = tmp_path / "broken.parquet", "none"
    failed = subprocess.run(
        [str(part) for part in (*command, *flags)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
        check=False,
    )
    assert failed.returncode == 2, failed.stderr
    assert failed.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'broken.parquet'}: ")
    assert "Traceback" not in failed.stderr
    assert not list((tmp_path / "none").glob(".*"))


@pytest.mark.slow
def test_on_sigterm_a_cluster_is_left_and_resumed(
    run_job: RunJob, models: Any, table_file: Path, tmp_path: Path
) -> None:
    """SIGTERM ends a job on a cluster with 143, and another engine goes on with what it left, to the same bytes."""
    task = Score(ScoreOptions(num_samples=256))
    flags = ["--bundle", models.bundles["table7"].path, "--num-samples", 256, "--shard-rows", 700]
    command = [sys.executable, "-m", "vaeserve", "score", table_file, "--out", "ray", "--engine", "ray", "--workers", 1]
    out = tmp_path / "ray"
    with subprocess.Popen([str(part) for part in (*command, *flags)], cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not list(out.glob("part-*.parquet")):
            time.sleep(0.001)
        process.terminate()
        _, said = process.communicate(timeout=240)
    assert process.returncode == 143, said
    assert "Traceback" not in said.decode()
    assert not [path.name for path in out.iterdir() if path.name == "_SUCCESS" or path.name.startswith(".")]
    run_job(table_file, out, task=task, shard_rows=700, resume=True)
    run_job(table_file, tmp_path / "local", task=task, shard_rows=700)
    assert parts(out) == parts(tmp_path / "local")
