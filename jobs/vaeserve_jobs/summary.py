"""The summary of a job: what came of all its shards, added up from their parts once every one is there."""

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.console import Console
from rich.markup import escape

from vaeserve.drift import P_VALUES
from vaeserve.errors import RefusedError
from vaeserve.manifest import Moments
from vaeserve.scores import RowStatus
from vaeserve.tables import READERS
from vaeserve_jobs.engine import in_order
from vaeserve_jobs.part import read_tally, take_rows
from vaeserve_jobs.plan import Plan
from vaeserve_jobs.sketch import ERROR
from vaeserve_jobs.store import Store
from vaeserve_jobs.tally import Drift, Tally
from vaeserve_jobs.worst import Ranking

PLAN, TOP, SUMMARY, SUCCESS = "_plan.json", "_top.jsonl", "_summary.json", "_SUCCESS"

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999, 1.0)

_MOST_NAMED = 10

Summary = dict[str, Any]
Tallied = tuple[Tally, dict[str, Any]]


def read_tallies(store: Store, plan: Plan, shards: Sequence[int]) -> Iterator[tuple[int, Tallied | None]]:
    """Yield each shard with its tally, None of those that aren't done; a few wait at a time, however many there are."""
    with ThreadPoolExecutor(READERS) as readers:
        read = in_order(
            lambda shard: (shard, read_tally(store, shard, plan.fingerprint)), iter(shards), readers, READERS
        )
        with closing(read):
            yield from read


def finish(store: Store, plan: Plan, *, run: dict[str, Any]) -> Summary:
    """Write the worst rows, the summary and `_SUCCESS`, unless another has, and return the summary as it is written.

    run: what the summary says of this process. Raises RefusedError, naming them, for shards that aren't done.
    """
    total, ranking = _add_up(store, plan)
    if ranking.limit:
        store.put_once(TOP, _top(store, ranking.rows))
    store.put_once(SUMMARY, (json.dumps(_summary(plan, total) | {"run": run}, indent=2) + "\n").encode())
    store.sweep("part-*")
    store.put_once(SUCCESS, b"")
    return read_summary(store)


def _add_up(store: Store, plan: Plan) -> tuple[Tally, Ranking]:
    """Return what was counted of all shards, and their worst rows; raises RefusedError for shards that aren't done."""
    total, ranking = Tally(), Ranking(plan.task.get("top", 0))
    todo = []
    for shard, tallied in read_tallies(store, plan, range(len(plan.shards))):
        if tallied is None:
            todo.append(shard)
            continue
        tally, worst = tallied
        total.merge(tally)
        ranking.add(shard, worst)
    if todo:
        named = ", ".join(map(str, todo[:_MOST_NAMED])) + (", ..." if len(todo) > _MOST_NAMED else "")
        raise RefusedError(f"--out {store.name}: {len(todo)} of {len(plan.shards)} shards aren't done: {named}")
    return total, ranking


def read_summary(store: Store) -> Summary:
    """Return a summary that was written."""
    said: Summary = json.loads(store.read(SUMMARY))
    return said


def _top(store: Store, worst: Sequence[tuple[int, int]]) -> bytes:
    """Return the rows at these (shard, position), in their order, as JSON lines."""
    ranked = list(enumerate(worst))
    rows: dict[int, dict[str, Any]] = {}
    for shard, some in groupby(sorted(ranked, key=lambda row: row[1]), key=lambda row: row[1][0]):
        places = list(some)
        table = take_rows(store, shard, [position for _, (_, position) in places])
        rows.update(zip(map(itemgetter(0), places), table.to_pylist(), strict=True))
    return "".join(json.dumps(_finite(rows[rank]), default=str) + "\n" for rank, _ in ranked).encode()


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with null for what JSON has no number for."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }


def _summary(plan: Plan, total: Tally) -> Summary:
    said: Summary = {
        "task": plan.task["kind"],
        "input": plan.input,
        "model": plan.model.name,
        "version": plan.model.version,
        "manifest_sha256": plan.model.manifest_sha256,
        "shards": len(plan.shards),
        "rows": total.rows,
        "written": total.written,
        "unscorable": {
            status.name: total.by_status[status.name]
            for status in RowStatus
            if status is not RowStatus.OK and total.by_status[status.name]
        },
        "skipped_files": [{"file": name, "reason": reason} for name, reason in _skipped(plan, total)],
    }
    if plan.task["kind"] == "score":
        said["anomalous"] = total.anomalous
        said["quantiles"] = {f"{level:g}": total.scores.quantile(level) for level in QUANTILES if total.scores.count}
        said["quantile_error"] = ERROR
        said["drift"] = _drift(plan, total.drift)
    return said


def _skipped(plan: Plan, total: Tally) -> Iterator[tuple[str, str]]:
    yield from plan.skipped
    for file, reason in total.skipped:
        yield plan.files[file][0] if plan.files else plan.input, reason


def _drift(plan: Plan, drift: Drift) -> dict[str, Any] | None:
    if not drift.rows:
        return None
    up_to = {p: int(drift.p_values[: place + 1].sum()) / drift.rows for place, p in enumerate(P_VALUES)}
    calibration = plan.summary
    return {
        "rows": drift.rows,
        "p_values": {f"{p:g}": share for p, share in up_to.items()},
        "largest_difference": max(abs(share - p) for p, share in up_to.items()),
        "log_likelihood": _moved(drift.log_likelihood / drift.rows, calibration.log_likelihood),
        "kl": _moved(drift.kl / drift.rows, calibration.kl),
    }


def _moved(mean: float, calibration: Moments) -> dict[str, float]:
    return {
        "mean": mean,
        "calibration_mean": calibration.mean,
        "calibration_standard_deviation": calibration.standard_deviation,
    }


def show(summary: Summary, console: Console) -> None:
    """Say a summary to a person."""
    unscorable = ", ".join(f"{count} {name.lower()}" for name, count in summary["unscorable"].items())
    anomalous = f", {summary['anomalous']} anomalous" if "anomalous" in summary else ""
    console.print(f"{summary['rows']} rows{anomalous}, {unscorable or '0 unscorable'}")
    if quantiles := summary.get("quantiles"):
        said = ", ".join(f"{level} {value:.4g}" for level, value in quantiles.items() if level in ("0.5", "0.99", "1"))
        console.print(f"score, by quantile: {said} (within {summary['quantile_error']:.1%})")
    if drift := summary.get("drift"):
        share, terms = drift["p_values"]["0.01"], (drift["log_likelihood"], drift["kl"])
        means = [f"{term['mean']:.4g} ({term['calibration_mean']:.4g} in calibration)" for term in terms]
        console.print(f"p <= 0.01: {share:.2%} of rows (1% of rows like the calibration's)")
        console.print(f"mean log-likelihood {means[0]}, KL {means[1]}, nats")
    for skipped in summary["skipped_files"]:
        console.print(f"skipped: {escape(skipped['reason'])}")
