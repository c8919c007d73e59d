"""The demo, as a newcomer runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_ends_with_scores_and_reports(tmp_path: Path) -> None:
    """The demo trains, exports, serves and scores both data sets, twice in one folder, and ends with its reports."""
    for _ in range(2):
        command = [sys.executable, "-m", "vaeserve", "demo", "--out", "demo"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        aurocs = [float(value) for value in re.findall(r"AUROC ([\d.]+)", done.stdout)]
        assert len(aurocs) == 2
        assert min(aurocs) > 0.9
        assert len(re.findall(r"latency of a call with one row: [\d.]+ ms", done.stdout)) == 2
        *_, digits, last = done.stdout.splitlines()
        reports = [tmp_path / line.removeprefix("report: ") for line in (digits, last)]
        assert all("ROC and precision-recall" in report.read_text() for report in reports)
        assert "The service has stopped." in done.stdout
    assert {path.name for path in (tmp_path / "demo" / "models" / "digits").iterdir()} == {"1", "2"}
