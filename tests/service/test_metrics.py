"""What is counted of calls, batches and versions."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from vaeserve.manifest import CalibrationSummary, Moments
from vaeserve.scores import Bound
from vaeserve_service.call import CURRENT, Call
from vaeserve_service.metrics import Metrics
from vaeserve_service.observer import Observer
from vaeserve_service.queues import Backlog, Queue
from vaeserve_service.requests import Batch, Request

OK = grpc.StatusCode.OK
CALIBRATION = CalibrationSummary(
    rows=99, unscorable=0, data="d", data_sha256="0", quantiles={bound: {} for bound in Bound},
    log_likelihood=Moments(mean=-40, standard_deviation=8), kl=Moments(mean=3, standard_deviation=1),
)  # fmt: skip


def series(metrics: Metrics) -> dict[str, float]:
    """Return what a scrape has of ours, as `name{labels}` with the labels in order."""
    return {
        f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
        if sample.name.startswith("vaeserve_")
    }


@pytest.fixture
def metrics() -> Metrics:
    """Metrics that nothing has counted in."""
    return Metrics()


def observe(
    metrics: Metrics, code: grpc.StatusCode, *, rows: int = 0, model: str = "fraud", version: str = "3", **kind: Any
) -> Call:
    """Let a call begin and end; return it."""
    observer = Observer(metrics)
    call = Call("vaeserve.v1.VaeService", "Score", on_answered=observer.answered, **kind)
    observer.begin(call)
    call.model, call.version = model, version
    if rows:
        call.answer(rows)
    observer.end(call, code)
    CURRENT.set(None)
    return call


def test_calls_are_counted_by_rpc_model_version_and_code(metrics: Metrics) -> None:
    """Each call once, its rows, and its time in a histogram; in flight are those that have begun and not ended."""
    observer = Observer(metrics)
    observe(metrics, OK, rows=5)
    observe(metrics, OK, rows=7)
    observe(metrics, grpc.StatusCode.NOT_FOUND, model="", version="")
    observer.begin(Call("s", "Score"))
    CURRENT.set(None)
    seen = series(metrics)
    assert seen["vaeserve_requests_total{code=OK,model=fraud,rpc=Score,version=3}"] == 2
    assert seen["vaeserve_requests_total{code=NOT_FOUND,model=,rpc=Score,version=}"] == 1
    assert seen["vaeserve_rows_total{model=fraud,rpc=Score,version=3}"] == 12
    assert seen["vaeserve_request_seconds_count{model=fraud,rpc=Score,version=3}"] == 2
    assert seen["vaeserve_request_seconds_bucket{le=10.0,model=fraud,rpc=Score,version=3}"] == 2
    assert 0 < seen["vaeserve_request_seconds_sum{model=fraud,rpc=Score,version=3}"] < 10
    assert seen["vaeserve_in_flight_requests{}"] == 1


@pytest.mark.parametrize(("code", "errors"), [(OK, 0), (grpc.StatusCode.INVALID_ARGUMENT, 1)])
def test_a_stream_counts_each_answer_and_its_error(metrics: Metrics, code: grpc.StatusCode, errors: int) -> None:
    """Its requests are counted as calls are, with the versions that answered; its end only if it is an error.

    Then by its code alone: how long it was open is none of the latencies.
    """
    observer = Observer(metrics)
    stream = Call("s", "ScoreStream", on_answered=observer.answered, streaming=True)
    observer.begin(stream)
    for version in ("3", "3", "4"):
        part = stream.part()
        part.model, part.version = "fraud", version
        part.answer(10)
    stream.part().refuse(grpc.StatusCode.NOT_FOUND)  # in its own answer, after which the stream goes on
    stream.model, stream.version = "fraud", "4"
    observer.end(stream, code)
    CURRENT.set(None)
    seen = series(metrics)
    assert seen["vaeserve_requests_total{code=OK,model=fraud,rpc=ScoreStream,version=3}"] == 2
    assert seen["vaeserve_requests_total{code=OK,model=fraud,rpc=ScoreStream,version=4}"] == 1
    assert seen.get("vaeserve_requests_total{code=INVALID_ARGUMENT,model=fraud,rpc=ScoreStream,version=4}", 0) == errors
    assert seen["vaeserve_rows_total{model=fraud,rpc=ScoreStream,version=3}"] == 20
    assert seen["vaeserve_rows_total{model=fraud,rpc=ScoreStream,version=4}"] == 10
    assert seen["vaeserve_requests_total{code=NOT_FOUND,model=,rpc=ScoreStream,version=}"] == 1
    assert stream.rows == 30
    latencies = [count for name, count in seen.items() if name.startswith("vaeserve_request_seconds_count")]
    assert latencies == [2, 1, 1]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("INVALID_ARGUMENT", "invalid_input"),
        ("NOT_FOUND", "not_found"),
        ("OUT_OF_RANGE", "out_of_range"),
        ("RESOURCE_EXHAUSTED", "queue_full"),
        ("DEADLINE_EXCEEDED", "deadline"),
        ("FAILED_PRECONDITION", "bundle"),
        ("OK", None),
        ("CANCELLED", None),
        ("INTERNAL", None),
        ("UNAVAILABLE", None),
    ],
)
def test_rejections_are_counted_by_reason(metrics: Metrics, code: str, reason: str | None) -> None:
    """What was answered, given up by its caller or failed by our fault was not rejected."""
    observe(metrics, grpc.StatusCode[code])
    rejected = {name: value for name, value in series(metrics).items() if "vaeserve_rejected_requests_total" in name}
    expected = {f"vaeserve_rejected_requests_total{{model=fraud,reason={reason}}}": 1.0} if reason else {}
    assert rejected == expected


def test_a_refusal_of_credentials_is_a_rejection_too(metrics: Metrics) -> None:
    """It is in both: by reason among the rejections, by scope and reason by itself."""
    metrics.denied("admin", "no_scope")
    seen = series(metrics)
    assert seen["vaeserve_rejected_requests_total{model=,reason=credentials}"] == 1
    assert seen["vaeserve_access_denied_total{reason=no_scope,scope=admin}"] == 1


def test_the_newest_version_served_is_the_active_one(metrics: Metrics) -> None:
    """By number, not by text; once it is retired the one before it is."""
    for version in ("9", "10"):
        metrics.watch("fraud", version, lambda: 4)
    seen = series(metrics)
    assert seen["vaeserve_model_active_version{model=fraud}"] == 10
    assert seen["vaeserve_model_ready{model=fraud,version=9}"] == 1
    assert seen["vaeserve_queue_rows{model=fraud,version=9}"] == 4
    metrics.retire("fraud", "10")
    seen = series(metrics)
    assert seen["vaeserve_model_active_version{model=fraud}"] == 9
    assert "vaeserve_model_ready{model=fraud,version=10}" not in seen


def test_a_versions_series_go_with_it(metrics: Metrics) -> None:
    """Once it is forgotten no series has its version, and those of others are as they were."""
    for version in ("3", "4"):
        metrics.record("fraud", version, CALIBRATION)
        metrics.watch("fraud", version, lambda: 0)
        observe(metrics, OK, rows=1, version=version)
    before = {name: value for name, value in series(metrics).items() if "version=4" in name}
    metrics.retire("fraud", "3")
    assert any("version=3" in name for name in series(metrics))
    metrics.forget("fraud", "3")
    seen = series(metrics)
    assert not [name for name in seen if "version=3" in name]
    assert {name: value for name, value in seen.items() if "version=4" in name} == before


def test_a_version_that_comes_back_counts_on_unless_it_is_another(metrics: Metrics) -> None:
    """Loaded again it keeps its record; with another calibration its scores aren't to be added to the old ones."""
    record = metrics.record("fraud", "3", CALIBRATION)
    assert metrics.record("fraud", "3", CALIBRATION.model_copy()) is record
    assert metrics.record("fraud", "3", CALIBRATION.model_copy(update={"rows": 98})) is not record


async def test_a_batch_counts_its_rows_its_time_and_each_requests_wait(metrics: Metrics) -> None:
    """A request that is computed in pieces has waited once, until the first of them."""
    record = metrics.record("fraud", "3", CALIBRATION)
    on_batch = partial(record.batch, "score")
    queue = Queue(lambda inputs: inputs, max_rows=4, max_delay_s=0, backlog=Backlog(), on_batch=on_batch)
    loop = asyncio.get_running_loop()
    large, small = (Request({"x": np.zeros((rows, 1))}, cost=1, queue=queue, loop=loop) for rows in (6, 1))
    large.arrived, small.arrived = 10.0, 11.0
    for request in (large, small):
        queue.join(request)
    batches: list[Batch] = [queue.take(), queue.take()]
    for number, batch in enumerate(batches):
        batch.started = 12.0 + number
        batch.ended = batch.started + 0.25
        queue.on_batch(batch)
    seen = series(metrics)
    assert seen["vaeserve_batch_rows_sum{model=fraud,version=3}"] == 7
    assert seen["vaeserve_batch_rows_count{model=fraud,version=3}"] == 2
    assert seen["vaeserve_compute_seconds_sum{model=fraud,version=3}"] == 0.5
    assert seen["vaeserve_queue_seconds_count{model=fraud,version=3}"] == 2
    assert seen["vaeserve_queue_seconds_sum{model=fraud,version=3}"] == (12 - 10) + (13 - 11)


async def test_an_operations_requests_are_tallied_until_their_last_piece(metrics: Metrics) -> None:
    """A request in pieces counts once, from its arrival to the end of its last; one of a failed batch as failed."""
    record = metrics.record("fraud", "3", CALIBRATION)
    queue = Queue(lambda inputs: inputs, max_rows=4, max_delay_s=0, backlog=Backlog(), on_batch=lambda _: None)
    request = Request({"x": np.zeros((6, 1))}, cost=1, queue=queue, loop=asyncio.get_running_loop())
    request.arrived = 10.0
    queue.join(request)
    for number in (0, 1):
        batch = queue.take()
        batch.started, batch.ended = 12.0 + number, 12.25 + number
        record.batch("encode", batch)
        assert metrics.tallies("fraud", "3")["encode"].computed.count == number
    batch.failed = True
    record.batch("score", batch)
    tallies = metrics.tallies("fraud", "3")
    assert (tallies["encode"].computed.seconds, tallies["encode"].queued.seconds) == (3.25, 2.0)
    assert (tallies["encode"].computing, tallies["encode"].ended) == (0.5, 13.25)
    assert {rows: batches.count for rows, batches in tallies["encode"].batches.items()} == {4: 1, 2: 1}
    assert (tallies["score"].computed.count, tallies["score"].failed.count) == (0, 1)
    assert metrics.tallies("fraud", "4") == {}


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless")
def test_it_can_be_read_while_it_is_added_to(metrics: Metrics) -> None:
    """A scrape comes on a thread of its own: it never fails, and no count that it sees ever shrinks."""
    done, added = threading.Event(), 0

    def add() -> None:
        nonlocal added
        while not done.is_set():
            version = str(added)
            metrics.record("coming", version, CALIBRATION)
            metrics.watch("coming", version, lambda: 0)
            observe(metrics, OK, model="coming", version=version)
            observe(metrics, OK)
            added += 1
            if added > 5:
                metrics.retire("coming", str(added - 6))
                metrics.forget("coming", str(added - 6))

    adding = threading.Thread(target=add)
    adding.start()
    try:
        name = "vaeserve_requests_total{code=OK,model=fraud,rpc=Score,version=3}"
        counts = [series(metrics).get(name, 0) for _ in range(60)]
    finally:
        done.set()
        adding.join()
    assert counts == sorted(counts)
    assert series(metrics)[name] == added
