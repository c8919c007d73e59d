"""Prometheus metrics; names carry their units, labels are bounded by the models served."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from vaeserve import __version__
from vaeserve_service import runtime
from vaeserve_service.requests import Batch

LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
LOAD_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        Info("vaeserve_build", "Versions.", registry=self._registry).info(
            {"version": __version__, "onnxruntime": runtime.VERSION}
        )
        self._requests = Counter(
            "vaeserve_requests",
            "Calls answered.",
            ("rpc", "model", "version", "code"),
            registry=self._registry,
        )
        self._latency = Histogram(
            "vaeserve_request_seconds",
            "Time from a call's arrival to its answer.",
            ("rpc", "model"),
            buckets=LATENCY_BUCKETS,
            registry=self._registry,
        )
        self._batch_rows = Histogram(
            "vaeserve_batch_rows",
            "Rows that were computed in one call.",
            ("model", "version"),
            buckets=ROWS_BUCKETS,
            registry=self._registry,
        )
        self._in_flight = Gauge("vaeserve_in_flight_requests", "Calls being answered.", registry=self._registry)
        self._queue_rows = Gauge(
            "vaeserve_queue_rows", "Rows waiting for a runner.", ("model", "version"), registry=self._registry
        )
        self._active = Gauge(
            "vaeserve_model_ready",
            "1 for each version served.",
            ("model", "version"),
            registry=self._registry,
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
        self._in_flight.inc()

    def answered(self, rpc: str, model: str, version: str, code: str, seconds: float) -> None:
        """Count a call that has been answered."""
        self._in_flight.dec()
        self._requests.labels(rpc, model, version, code).inc()
        self._latency.labels(rpc, model).observe(seconds)

    def batch_observer(self, model: str, version: str) -> Callable[[Batch], None]:
        """Return what counts a batch's rows."""
        observe = self._batch_rows.labels(model, version).observe
        return lambda batch: observe(batch.rows)

    def watch(self, model: str, version: str, waiting_rows: Callable[[], int]) -> None:
        """Show a loaded model and its queue."""
        self._active.labels(model, version).set(1)
        self._queue_rows.labels(model, version).set_function(waiting_rows)

    def denied(self, scope: str, reason: str) -> None:
        """Count a call that was refused for its credentials."""
        self._denied.labels(scope, reason).inc()

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
        self._active.remove(model, version)
        self._queue_rows.remove(model, version)

    def forget(self, model: str, version: str) -> None:
        """Drop a version's series, or they would grow with every version that ever was."""
        for metric in (self._requests, self._batch_rows):
            metric.remove_by_labels({"model": model, "version": version})

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
