"""How a job says how it comes on, by a clock that the test moves."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from vaeserve.errors import ConfigError
from vaeserve_jobs.progress import Bar, Lines, Meter, MetricsFile, Show
from vaeserve_jobs.tally import Tally


class Planned:
    """A plan of four shards of a hundred rows."""

    def rows(self, shard: int) -> int:
        """Return a hundred."""
        del shard
        return 100


class Run:
    """A meter, and the clock that it goes by."""

    def __init__(self, *shows: Show) -> None:
        self.now = 100.0
        self.meter = Meter(*shows, clock=lambda: self.now)
        plan: Any = Planned()
        self.meter.begin(plan, range(4))

    def rows(self, count: int, *, seconds: float) -> None:
        """Let some rows be computed in so many seconds."""
        self.now += seconds
        self.meter.rows(count)


def test_a_line_comes_every_ten_seconds() -> None:
    """One line of JSON at the start, one for each ten seconds, and one at the end, however often there are rows."""
    said: list[dict[str, Any]] = []
    run = Run(Lines(lambda line: said.append(json.loads(line))))
    for _ in range(25):
        run.rows(10, seconds=1)
    run.meter.shard(0, Tally())
    run.meter.end()
    assert [one["rows"] for one in said] == [0, 100, 200, 250]
    assert said[1] == {
        "event": "progress",
        "rows": 100,
        "share": 0.25,
        "rows_per_s": 10,
        "seconds_left": 30,
        "shards": 4,
        "shards_done": 0,
    }
    assert said[-1]["shards_done"] == 1


def test_a_bar_shows_rate_share_and_time_left() -> None:
    """On a terminal there is a bar with the rows, the rows a second, the share done and the time left."""
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=120), "score") as bar:
        run = Run(bar)
        run.rows(200, seconds=10)
    said = screen.getvalue()
    assert "200 rows, 20 rows/s" in said
    assert "50%" in said


def test_rows_of_text_are_an_estimate() -> None:
    """Where there are more rows than were expected, the share is 1 and no time is left."""
    run = Run()
    run.rows(900, seconds=1)
    assert (run.meter.share, run.meter.seconds_left) == (1.0, 0.0)


def test_what_is_done_is_done(tmp_path: Path) -> None:
    """Once all shards are, all is: where text had fewer rows than were expected, and where nothing was left to do."""
    screen = io.StringIO()
    with Bar(Console(file=screen, force_terminal=True, width=120), "score") as bar:
        run = Run(bar)
        run.rows(390, seconds=1)
        assert run.meter.share == 0.975
        for shard in range(4):
            run.meter.shard(shard, Tally())
        run.meter.end()
    assert (run.meter.share, run.meter.seconds_left) == (1.0, 0.0)
    assert "100%" in screen.getvalue()
    Meter(MetricsFile(tmp_path / "job.prom", {"job": "nightly"}, print)).end()
    assert 'vaeserve_job_done_ratio{job="nightly"} 1.0' in (tmp_path / "job.prom").read_text()


def test_metrics_are_a_file_that_prometheus_reads(tmp_path: Path) -> None:
    """The file has what is done so far, in Prometheus' form, and nothing half-written lies beside it."""
    run = Run(MetricsFile(tmp_path / "job.prom", {"job": "nightly"}, print))
    run.rows(100, seconds=10)
    run.meter.shard(
        0, Tally(rows=100, written=100, anomalous=3, by_status=Counter({"OK": 99, "UNSCORABLE_MISSING": 1}))
    )
    run.meter.end()
    families = text_string_to_metric_families((tmp_path / "job.prom").read_text())
    values = {(s.name, s.labels.get("status")): s.value for family in families for s in family.samples}
    assert values["vaeserve_job_computed_rows", None] == 100
    assert values["vaeserve_job_rows_per_second", None] == 10
    assert values["vaeserve_job_done_ratio", None] == 0.25
    assert (values["vaeserve_job_shards", None], values["vaeserve_job_done_shards", None]) == (4, 1)
    assert values["vaeserve_job_anomalous_rows", None] == 3
    assert values["vaeserve_job_scored_rows", "unscorable_missing"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["job.prom"]
    with pytest.raises(ConfigError, match=r"--metrics-file .*none.job.prom: No such file or directory"):
        Run(MetricsFile(tmp_path / "none" / "job.prom", {"job": "nightly"}, print))


def test_a_job_that_has_begun_goes_on_without_its_metrics(tmp_path: Path) -> None:
    """Where the file can't be written any more, that is said once, and no row is lost for it."""
    (tmp_path / "metrics").mkdir()
    said: list[str] = []
    run = Run(MetricsFile(tmp_path / "metrics" / "job.prom", {"job": "nightly"}, said.append))
    (tmp_path / "metrics" / "job.prom").unlink()
    (tmp_path / "metrics").rmdir()
    run.rows(100, seconds=10)
    run.rows(100, seconds=10)
    run.meter.end()
    assert run.meter.counted == 200
    (warning,) = said
    assert warning.startswith("warning: --metrics-file ")
    assert "No such file or directory" in warning
