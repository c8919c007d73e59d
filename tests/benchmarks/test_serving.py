"""The serving benchmark, in small; no figure is judged here."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import main

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `python -m benchmarks`."""
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.skipif(not shutil.which("h2load"), reason="needs h2load, of Debian's nghttp2-client")
@pytest.mark.slow
def test_measures_both_servers_on_every_workload(tmp_path: Path) -> None:
    """Each workload has both servers' figures, their ratios, and answers that agree with ONNX Runtime's."""
    out = tmp_path / "results.json"
    done = run("serving", "--work", str(tmp_path), "--rounds", "1", "--scale", "0.01", "--out", str(out))
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert results["commit"]
    assert results["machine"]["cores"] >= 1
    assert list(results["workloads"]) == ["W1", "W1 as ScoreStream", "W2", "W3", "W4"]
    for workload in results["workloads"].values():
        assert max(workload["largest_error"].values()) <= 1e-4
        for server in ("ours", "naive", "ours_to_naive"):
            assert workload[server]["requests_per_s"] > 0
            assert "cpu_us_per_request" in workload[server]
    assert results["workloads"]["W3"]["ours"]["p50_us"] > 0


def test_refuses_a_name_that_is_no_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown benchmark is a usage error that lists the known ones."""
    with pytest.raises(SystemExit) as refused:
        main(["nonesuch"])
    assert refused.value.code == 2
    assert "serving" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("h2load"), reason="needs h2load, of Debian's nghttp2-client")
@pytest.mark.slow
def test_measures_the_transport_alone() -> None:
    """An echo of each kind has its processor time on each transport."""
    done = run("transport", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for transport in ("grpcio", "asyncio"):
        assert {name: figure > 0 for name, figure in results[transport].items()} == {
            "call_us": True,
            "message_us": True,
        }
