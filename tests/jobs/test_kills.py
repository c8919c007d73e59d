"""Jobs in processes of their own, which are killed, stopped and started again."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.jobs.conftest import parts
from vaeserve.local import serve_locally

KILLS = 20
ROWS, SHARD_ROWS = 48_000, 1000
SHARDS = ROWS // SHARD_ROWS


@pytest.fixture(scope="module")
def many_rows(rows_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows for many shards."""
    rows = rows_of("table7", ROWS)
    table = pa.table({"id": np.arange(ROWS), **{f"c{index}": rows[:, index] for index in range(7)}})
    path = tmp_path_factory.mktemp("many") / "in.parquet"
    pq.write_table(table, path, row_group_size=SHARD_ROWS)
    return path


@pytest.fixture
def start(models: Any, many_rows: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start a job in a process: `start(out, *flags)`; many samples of noise make its shards last."""
    flags = ["--keep", "id", "--top", 10, "--top-features", 2]
    flags += ["--shard-rows", SHARD_ROWS, "--num-samples", 64, "--workers", 2]

    processes: list[subprocess.Popen[str]] = []

    def started(out: Path, *more: object, server: str | None = None) -> "subprocess.Popen[str]":
        bundle = ["--bundle", models.bundles["table7"].path]
        where = ["--server", server, "--model", "table7"] if server else bundle
        command = [sys.executable, "-m", "vaeserve", "score", many_rows, "--out", out, *where, *flags, *more]
        processes.append(
            subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return processes[-1]

    yield started
    for process in processes:
        with process:  # which is over, unless the test failed
            process.kill()


def finished(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a job to be done, and return its summary."""
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    summary: dict[str, Any] = json.loads(said)
    return summary


def wait_for(process: "subprocess.Popen[str]", out: Path, shards: int) -> None:
    """Wait until so many parts are there, or the process has ended."""
    while process.poll() is None and len(list(out.glob("part-*.parquet"))) < shards:
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_anywhere_and_resumed_the_output_is_identical(start: Any, tmp_path: Path) -> None:
    """After 20 kills with -9 at random points, all bytes are those of a job that was never killed."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = finished(start(whole, "--json"))
    chance = random.Random(7)  # noqa: S311 - where to kill is no secret
    seen: list[tuple[int, int]] = []
    for kill in range(KILLS):
        process = start(out, "--resume")
        wait_for(process, out, kill * SHARDS // (KILLS + 1))
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        seen.append((len(list(out.glob("part-*.parquet"))), len(list(out.glob(".part-*.partial")))))
        assert not (out / "_SUCCESS").exists()
    # The kills did hit it at work: at many places, and with parts half-written.
    assert len({done for done, _ in seen}) > KILLS // 2
    assert max(partial for _, partial in seen) > 0
    assert 0 < max(done for done, _ in seen) < SHARDS
    summary = finished(start(out, "--resume", "--json"))
    assert parts(out) == parts(whole)
    assert (out / "_top.jsonl").read_bytes() == (whole / "_top.jsonl").read_bytes()
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())
    assert {**summary, "run": 0, "out": 0} == {**expected, "run": 0, "out": 0}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_it_cleanly(start: Any, tmp_path: Path, number: signal.Signals, code: int) -> None:
    """On SIGTERM it leaves whole parts and nothing else, says so, and exits 143; resumed, it is done as ever."""
    out = tmp_path / "out"
    process = start(out)
    wait_for(process, out, 3)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    names = sorted(path.name for path in out.iterdir())
    assert names == ["_plan.json", *(f"part-{shard:05}.parquet" for shard in range(len(names) - 1))]
    assert 3 <= len(names) - 1 < SHARDS
    assert said.splitlines()[-1] == f"stopped: {len(names) - 1} of {SHARDS} shards are done; --resume goes on"


def test_a_signal_ends_it_though_the_service_hangs(start: Any, models: Any, tmp_path: Path) -> None:
    """SIGTERM is obeyed before the 30 s of the calls, or of Kubernetes, are over; resumed it is done as ever."""
    out = tmp_path / "out"
    with serve_locally(models.repository, log=tmp_path / "log") as service:
        process = start(out, server=service.target)
        wait_for(process, out, 3)
        service.process.send_signal(signal.SIGSTOP)
        try:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=25)
        finally:
            service.process.send_signal(signal.SIGCONT)
    assert process.returncode == 143, said
    assert not list(out.glob(".*"))
    assert 3 <= len(parts(out)) < SHARDS
    assert finished(start(out, "--resume", "--json"))["rows"] == ROWS


def test_a_signal_ends_it_before_its_first_shard(start: Any, models: Any, tmp_path: Path) -> None:
    """SIGTERM is obeyed while it opens its input or, as here, waits for its model, and nothing is written."""
    out = tmp_path / "out"
    with serve_locally(models.repository, log=tmp_path / "log") as service:
        service.process.send_signal(signal.SIGSTOP)
        try:
            process = start(out, server=service.target)
            while process.poll() is None and not takes(process, signal.SIGTERM):
                time.sleep(0.001)
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=20)
        finally:
            service.process.send_signal(signal.SIGCONT)
    assert process.returncode == 143, said
    assert said.splitlines() == ["stopped: no shard had begun; --resume goes on"]
    assert not out.exists()


def takes(process: "subprocess.Popen[str]", number: signal.Signals) -> bool:
    """Tell whether a process has a handler for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> number - 1 & 1)


@pytest.mark.slow
def test_pods_share_a_job_at_once(start: Any, tmp_path: Path) -> None:
    """Three processes at once, each by its index, make the output of one, and the summary once."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = finished(start(whole, "--json"))
    pods = [start(out, "--shard", f"{place}/3", "--json") for place in range(3)]
    summaries = [finished(pod) for pod in pods]
    assert parts(out) == parts(whole)
    assert (out / "_SUCCESS").exists()
    ends = [summary for summary in summaries if "quantiles" in summary]
    assert ends
    assert all({**end, "run": 0, "out": 0} == {**expected, "run": 0, "out": 0} for end in ends)


def test_memory_stays_flat(models: Any, rows_of: Any, tmp_path: Path) -> None:
    """Eight times the rows take hardly more memory."""
    rows = rows_of("table7", 50_000)
    table = pa.table({f"c{index}": rows[:, index] for index in range(7)})
    peaks = []
    for times in (1, 8):
        with pq.ParquetWriter(tmp_path / f"{times}.parquet", table.schema) as writer:
            for _ in range(times):
                writer.write_table(table)
        command = [sys.executable, "-c", PEAK, tmp_path / f"{times}.parquet", tmp_path / str(times)]
        command += ["--bundle", models.bundles["table7"].path, "--memory", "64MiB"]
        done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True, timeout=300)
        peaks.append(int(done.stdout.splitlines()[-1]))
    assert peaks[1] < peaks[0] + 40 * 2**10  # kibibytes; all rows together have 11 MB, and 15 MB of scores


PEAK = """
import sys
from pathlib import Path
from vaeserve.cli import app
data, out, *flags = sys.argv[1:]
app(["score", data, "--out", out, *flags], standalone_mode=False)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
