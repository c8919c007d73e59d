"""The benchmark of what metrics cost, in small; no figure is judged here."""

import json
import shutil
from pathlib import Path

import pytest

from tests.benchmarks.test_serving import run


@pytest.mark.skipif(not shutil.which("h2load"), reason="needs h2load, of Debian's nghttp2-client")
@pytest.mark.slow
def test_says_what_is_counted_costs_of_a_call(tmp_path: Path) -> None:
    """It has the microseconds of each part, and their share of a call's processor time."""
    out = tmp_path / "results.json"
    done = run("observing", "--work", str(tmp_path), "--rounds", "1", "--scale", "0.01", "--out", str(out))
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    costs = results["us"]
    assert costs["sum"] == pytest.approx(sum(costs[part] for part in ("call", "batch", "scores")), abs=0.02)
    assert results["share"] == pytest.approx(costs["sum"] / results["cpu_us_per_request"], rel=0.05)
