"""Jobs on a Ray cluster: a real one, of two workers on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.conftest import RunJob, parts
from vaeserve_jobs import Score
from vaeserve_jobs.cluster import _our_own


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
    (said,) = (line for line in failed.stderr.splitlines() if line.startswith("error: "))
    assert "broken.parquet: " in said
    assert not list((tmp_path / "none").glob(".*"))


def test_an_error_of_ours_is_found_within_rays() -> None:
    """What a worker raised is what is said, whatever Ray puts around it; what is none of ours stays Ray's."""
    from vaeserve.errors import DataError

    class Wrapped(Exception):  # noqa: N818 - as Ray's are
        def __init__(self, cause: Exception) -> None:
            self.cause = cause

    ours, other = DataError("a file"), Wrapped(ValueError("another"))
    assert _our_own(Wrapped(Wrapped(ours))) is ours
    assert _our_own(other) is other
