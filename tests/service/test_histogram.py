"""Histograms of our own, against prometheus_client's."""

import threading

import numpy as np
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference

from vaeserve_service.histogram import Histogram

BOUNDS = (0.1, 0.5, 1.0, 16.0)


def test_values_are_counted_as_prometheus_client_counts_them() -> None:
    """A bucket holds what is up to its bound; names, counts and sum are those of the reference."""
    values = [0.0, 0.1, 0.10001, 0.5, 0.7, 1.0, 15.9, 16.0, 17.0, 1e9, *np.random.default_rng(0).exponential(size=500)]
    registry = CollectorRegistry()
    ours, reference = Histogram(BOUNDS), Reference("x", "x", buckets=BOUNDS, registry=registry)
    for value in values:
        ours.add(value)
        reference.observe(value)
    (family,) = registry.collect()
    expected = {s.labels["le"]: s.value for s in family.samples if s.name == "x_bucket"}
    assert dict(ours.buckets) == expected
    assert ours.sum == registry.get_sample_value("x_sum")


def test_values_that_are_counted_already_are_added() -> None:
    """Counts by bucket and a total are the same as the values one by one."""
    one_by_one, at_once = Histogram(BOUNDS), Histogram(BOUNDS)
    for value in (0.05, 0.2, 0.2, 99.0):
        one_by_one.add(value)
    at_once.add_counted([1, 2, 0, 0, 1], 99.45)
    assert at_once.buckets == one_by_one.buckets
    assert round(at_once.sum, 9) == round(one_by_one.sum, 9)


def test_a_reader_on_another_thread_sees_counts_that_agree() -> None:
    """However it is read while it is added to, no bucket holds less than the one below it, and none ever shrinks."""
    histogram, done = Histogram(BOUNDS), threading.Event()
    seen: list[list[float]] = []

    def read() -> None:
        while not done.is_set():
            seen.append([count for _, count in histogram.buckets])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50_000):
        histogram.add(number % 20)
    done.set()
    reader.join()
    seen.append([count for _, count in histogram.buckets])
    assert seen[-1][-1] == 50_000
    assert all(counts == sorted(counts) for counts in seen)
    assert all(np.all(np.diff(column) >= 0) for column in zip(*seen, strict=True))
