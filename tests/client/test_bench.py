"""The load that `vaeserve bench` puts on a real service."""

import json
import subprocess
import sys
from typing import Any

import pytest

from vaeserve.bench import Load, bench
from vaeserve.errors import InvalidInputError, NotFoundError
from vaeserve.local import LocalService
from vaeserve.scores import Scores

BRIEFLY = Load(callers=4, rows=3, seconds=0.3)


@pytest.mark.parametrize("kind", ["table7", "mixed", "image"])
def test_calls_of_any_model_are_answered_and_timed(service: LocalService, kind: str) -> None:
    """Rows that the model invents are scored: each call has a time, and the quantiles are in order."""
    measured = bench(service.target, kind, load=BRIEFLY)
    assert len(measured.latencies) > 4
    assert all(0 < latency <= BRIEFLY.seconds for latency in measured.latencies)
    assert not measured.failed
    quantiles = list(measured.quantiles().values())
    assert quantiles == sorted(quantiles)
    assert quantiles[-1] == max(measured.latencies)
    said = measured.to_json()
    assert said["requests"] == len(measured.latencies)
    assert said["rows_per_s"] == pytest.approx(3 * len(measured.latencies) / BRIEFLY.seconds, abs=0.1)
    assert (said["model"], said["version"]) == (kind, "1")


def test_so_many_callers_call_at_once(service: LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls are in flight as there are callers, never more, each with as many rows as asked for."""
    from vaeserve.client import AsyncClient

    flying, most, lengths = 0, 0, set()
    score = AsyncClient.score

    async def counted(self: AsyncClient, model: str, rows: Any, **options: Any) -> Scores:
        nonlocal flying, most
        flying += 1
        most = max(most, flying)
        try:
            scores = await score(self, model, rows, **options)
        finally:
            flying -= 1
        lengths.add(len(scores))
        return scores

    monkeypatch.setattr(AsyncClient, "score", counted)
    bench(service.target, "table7", load=BRIEFLY)
    assert most == BRIEFLY.callers
    assert lengths == {BRIEFLY.rows}


def test_failed_calls_are_counted_by_what_failed(service: LocalService, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is no latency; where every call fails, the error is raised."""
    from vaeserve.client import AsyncClient
    from vaeserve.errors import OverloadedError

    score, calls = AsyncClient.score, 0

    async def failing(self: AsyncClient, *arguments: Any, **options: Any) -> Scores:
        nonlocal calls
        calls += 1
        if calls % 2 or every:
            raise OverloadedError("queue: full")
        return await score(self, *arguments, **options)

    every = False
    monkeypatch.setattr(AsyncClient, "score", failing)
    measured = bench(service.target, "table7", load=BRIEFLY)
    assert set(measured.failed) == {"OverloadedError"}
    assert measured.latencies
    every = True
    with pytest.raises(OverloadedError, match="queue: full"):
        bench(service.target, "table7", load=BRIEFLY)


def test_what_cannot_be_asked_is_refused(service: LocalService) -> None:
    """A model that isn't there is named before anything is sent, and so is a load of nobody."""
    with pytest.raises(NotFoundError, match="fraud"):
        bench(service.target, "fraud", load=BRIEFLY)
    with pytest.raises(InvalidInputError, match="a load of 0 callers"):
        bench(service.target, "table7", load=Load(callers=0))


def test_the_command_says_it_to_people_and_to_programs(service: LocalService) -> None:
    """Text for people, JSON for programs, and 2 for a model that isn't there."""

    def run(*flags: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "vaeserve", "bench", service.target, "--seconds", "0.3", *flags]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)

    said = run("--model", "table7", "--callers", "2").stdout
    assert "table7, version 1: 2 calls at once of 1 row, 0.3 s" in said
    assert "requests/s" in said
    assert "(p99)" in said
    assert json.loads(run("--model", "table7", "--json").stdout)["failed"] == {}
    missing = run("--model", "fraud")
    assert (missing.returncode, "fraud" in missing.stderr) == (2, True)
