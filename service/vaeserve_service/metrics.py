"""Prometheus metrics; names carry their units, labels are bounded by the models served. docs/metrics.md explains each.

What every call adds to is counted by ourselves and put into Prometheus' form when it is asked for.
"""

from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.metrics import disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from vaeserve import __version__
from vaeserve.manifest import CalibrationSummary
from vaeserve_service import histogram, runtime
from vaeserve_service.call import Call
from vaeserve_service.record import Record, Tally

LATENCIES = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LOAD_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# Why a call is rejected, by the code that it ends with; what ends with another was answered, or failed.
REASONS = {
    "INVALID_ARGUMENT": "invalid_input",
    "NOT_FOUND": "not_found",
    "OUT_OF_RANGE": "out_of_range",
    "RESOURCE_EXHAUSTED": "queue_full",
    "DEADLINE_EXCEEDED": "deadline",
    "FAILED_PRECONDITION": "bundle",
}
CREDENTIALS = "credentials"

# A time of creation beside each counter is no use to who reads this format, which can't say what it is.
disable_created_metrics()  # type: ignore[no-untyped-call]

Version = tuple[str, str]


class Answers:
    """The answers of an RPC by a model version."""

    __slots__ = ("codes", "rows", "seconds")

    def __init__(self) -> None:
        self.codes: Counts[str] = Counts()
        self.rows = 0
        self.seconds = histogram.Histogram(LATENCIES)


class Metrics(Collector):
    """The service's metrics, in a registry of their own. Calls are counted on one thread, and read from any."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._answers: dict[tuple[str, str, str], Answers] = {}
        self._records: dict[Version, Record] = {}
        self._ready: set[Version] = set()
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        Info("vaeserve_build", "Versions.", registry=self._registry).info(
            {"version": __version__, "onnxruntime": runtime.VERSION}
        )
        self._rejected = Counter(
            "vaeserve_rejected_requests",
            "Calls that were refused or came to nothing, by reason.",
            ("model", "reason"),
            registry=self._registry,
        )
        self._queue_rows = Gauge(
            "vaeserve_queue_rows", "Rows waiting for a runner.", ("model", "version"), registry=self._registry
        )
        self._load_seconds = Histogram(
            "vaeserve_model_load_seconds",
            "Time from a version's files to its first answer.",
            ("model",),
            buckets=LOAD_BUCKETS,
            registry=self._registry,
        )
        self._loads = Counter("vaeserve_model_loads", "Versions loaded.", ("model",), registry=self._registry)
        self._load_failures = Counter(
            "vaeserve_model_load_failures", "Versions that failed to load.", ("model",), registry=self._registry
        )
        self._poll_failures = Counter(
            "vaeserve_repository_poll_failures", "Times that a folder couldn't be read.", registry=self._registry
        )
        self._denied = Counter(
            "vaeserve_access_denied",
            "Calls refused for their credentials.",
            ("scope", "reason"),
            registry=self._registry,
        )
        self._reloaded = Gauge(
            "vaeserve_last_reload_successful",
            "1 while a section's files could be read as they are now, 0 while older content holds.",
            ("section",),
            registry=self._registry,
        )

    def started(self) -> None:
        """Count a call that has arrived."""
        self._in_flight += 1

    def ended(self) -> None:
        """Count a call that is over."""
        self._in_flight -= 1

    def answered(self, call: Call, code: str, *, rows: int) -> None:
        """Count a request that has been answered, or refused, with a code, and its rows."""
        key = (call.rpc, call.model, call.version)
        answers = self._answers.get(key)
        if answers is None:
            answers = self._answers[key] = Answers()
        answers.codes[code] += 1
        answers.rows += rows
        if not call.streaming:  # how long a stream was open is no latency
            answers.seconds.add(call.seconds)
        if code in REASONS:
            self._rejected.labels(call.model, REASONS[code]).inc()

    def record(self, model: str, version: str, calibration: CalibrationSummary) -> Record:
        """Return what a version that has been loaded adds to: from 0, unless it was there with the same calibration."""
        record = self._records.get((model, version))
        if record is None or record.drift.calibration != calibration:
            record = self._records[model, version] = Record(calibration)
        return record

    def tallies(self, model: str, version: str) -> Mapping[str, Tally]:
        """Return what became of a version's requests, by operation."""
        record = self._records.get((model, version))
        return record.tallies if record else {}

    def watch(self, model: str, version: str, waiting_rows: Callable[[], int]) -> None:
        """Show a loaded model and its queue."""
        self._ready.add((model, version))
        self._queue_rows.labels(model, version).set_function(waiting_rows)

    def denied(self, scope: str, reason: str) -> None:
        """Count a call that was refused for its credentials."""
        self._denied.labels(scope, reason).inc()
        self._rejected.labels("", CREDENTIALS).inc()

    def watch_files(self, section: str, current: Callable[[], bool]) -> None:
        """Show whether a section's files could be read as they are."""
        self._reloaded.labels(section).set_function(current)

    def watch_certificate(self, expires: Callable[[], float]) -> None:
        """Show when the service's certificate expires, in seconds since the epoch."""
        Gauge(
            "vaeserve_tls_certificate_expiry_timestamp_seconds",
            "When the first certificate of the chain expires.",
            registry=self._registry,
        ).set_function(expires)

    def retire(self, model: str, version: str) -> None:
        """Show a model no more that isn't served; what it has counted stays until it is forgotten."""
        self._ready.discard((model, version))
        self._queue_rows.remove(model, version)

    def forget(self, model: str, version: str) -> None:
        """Drop a version's series, or they would grow with every version that ever was."""
        self._records.pop((model, version), None)
        for key in [key for key in self._answers if key[1:] == (model, version)]:
            del self._answers[key]

    def loaded(self, model: str, seconds: float) -> None:
        """Count a version that has been loaded."""
        self._loads.labels(model).inc()
        self._load_failures.labels(model)  # from 0, or the first failure would be no increase
        self._load_seconds.labels(model).observe(seconds)

    def load_failed(self, model: str) -> None:
        """Count a version that failed to load."""
        self._load_failures.labels(model).inc()

    def poll_failed(self) -> None:
        """Count a look at the repository that failed."""
        self._poll_failures.inc()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield what is counted here, for the registry."""
        yield GaugeMetricFamily("vaeserve_in_flight_requests", "Calls being answered.", value=self._in_flight)
        yield from self._ready_versions()
        yield from self._of_answers()
        yield from self._of_batches()
        yield from self._of_scores()
        for name, said in _TERMS.items():
            yield from self._of_term(name, said)

    def _ready_versions(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily("vaeserve_model_ready", "1 for each version served.", labels=("model", "version"))
        active = GaugeMetricFamily(
            "vaeserve_model_active_version", "The version that answers who names none.", labels=("model",)
        )
        newest: dict[str, int] = {}
        for model, version in sorted(self._ready.copy()):  # a copy, for the loop's thread changes it
            ready.add_metric((model, version), 1)
            newest[model] = max(newest.get(model, 0), int(version))
        for model, number in newest.items():
            active.add_metric((model,), number)
        yield from (ready, active)

    def _of_answers(self) -> Iterator[Metric]:
        labels = ("rpc", "model", "version")
        requests = CounterMetricFamily("vaeserve_requests", "Requests answered.", labels=(*labels, "code"))
        rows = CounterMetricFamily("vaeserve_rows", "Rows answered.", labels=labels)
        seconds = HistogramMetricFamily(
            "vaeserve_request_seconds", "Time from a request's arrival to its answer.", labels=labels
        )
        for key, answers in list(self._answers.items()):
            for code, count in list(answers.codes.items()):
                requests.add_metric((*key, code), count)
            rows.add_metric(key, answers.rows)
            _add(seconds, key, answers.seconds)
        yield from (requests, rows, seconds)

    def _of_batches(self) -> Iterator[Metric]:
        labels = ("model", "version")
        rows = HistogramMetricFamily("vaeserve_batch_rows", "Rows that were computed in one call.", labels=labels)
        queued = HistogramMetricFamily(
            "vaeserve_queue_seconds", "Time from a request's place in the queue to its batch.", labels=labels
        )
        computed = HistogramMetricFamily("vaeserve_compute_seconds", "Time that a batch computed.", labels=labels)
        for key, record in list(self._records.items()):
            _add(rows, key, record.batch_rows)
            _add(queued, key, record.queue_seconds)
            _add(computed, key, record.compute_seconds)
        yield from (rows, queued, computed)

    def _of_scores(self) -> Iterator[Metric]:
        labels = ("model", "version")
        statuses = CounterMetricFamily("vaeserve_scored_rows", "Rows scored, by status.", labels=(*labels, "status"))
        anomalous = CounterMetricFamily("vaeserve_anomalous_rows", "Rows called anomalous.", labels=labels)
        p_values = HistogramMetricFamily(
            "vaeserve_score_p_value", "The p-values of rows scored as the calibration's were.", labels=labels
        )
        for key, record in list(self._records.items()):
            record.drift.count()
            for status, count in record.drift.by_status.items():
                statuses.add_metric((*key, status.name.lower()), count)
            anomalous.add_metric(key, record.drift.anomalous)
            _add(p_values, key, record.drift.p_values)
        yield from (statuses, anomalous, p_values)

    def _of_term(self, name: str, said: str) -> Iterator[Metric]:
        labels = ("model", "version")
        total = CounterMetricFamily(
            f"vaeserve_{name}_nats", f"The sum of rows' {said}, by sign.", labels=(*labels, "sign")
        )
        mean = GaugeMetricFamily(
            f"vaeserve_calibration_{name}_mean_nats", f"The calibration's mean {said}.", labels=labels
        )
        deviation = GaugeMetricFamily(
            f"vaeserve_calibration_{name}_stddev_nats",
            f"The standard deviation of the calibration's {said}.",
            labels=labels,
        )
        for key, record in list(self._records.items()):
            served, calibrated = getattr(record.drift, name), getattr(record.drift.calibration, name)
            total.add_metric((*key, "positive"), served.positive)
            total.add_metric((*key, "negative"), served.negative)
            mean.add_metric(key, calibrated.mean)
            deviation.add_metric(key, calibrated.standard_deviation)
        yield from (total, mean, deviation)


# What a score is made of, by its name in the drift and in the calibration, and in words.
_TERMS = {"kl": "KL divergence", "log_likelihood": "log-likelihood"}


def _add(family: HistogramMetricFamily, labels: tuple[str, ...], values: histogram.Histogram) -> None:
    family.add_metric(labels, values.buckets, values.sum)
