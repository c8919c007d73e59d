"""Reading ahead, and computing side by side in order."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaeserve_jobs.engine import StoppedError, in_order, read_ahead


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 6), st.integers(1, 4))
def test_what_comes_of_items_is_in_their_order(count: int, ahead: int, workers: int) -> None:
    """However many are read ahead or worked at, each item comes once, in order."""
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(workers) as pool:
        made = in_order(lambda item: item * 2, read_ahead(iter(range(count)), reader, ahead), pool, ahead)
        assert list(made) == [item * 2 for item in range(count)]


def test_no_more_is_read_than_was_asked_for() -> None:
    """Memory is bounded: so many items are read, and so many more are being worked at, before one is taken."""
    read: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            read.append(item)
            yield item

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(2) as pool:
        ahead = read_ahead(items(), reader, 3)
        with closing(ahead), closing(in_order(lambda item: item, ahead, pool, 4)) as made:
            assert next(made) == 0
            reader.submit(lambda: None).result()
            assert len(read) <= 3 + 4
            assert next(made) == 1


def test_two_are_worked_at_at_once() -> None:
    """With two workers one item's work may wait for another's."""
    both = threading.Barrier(2, timeout=30)
    with ThreadPoolExecutor(2) as pool:
        assert list(in_order(lambda _: both.wait() >= 0, iter(range(4)), pool, 4)) == [True] * 4


def test_a_fault_comes_in_its_turn() -> None:
    """What was made before an item that fails is handed on first."""
    with ThreadPoolExecutor(2) as pool:
        made = in_order(lambda item: 6 // item, iter([3, 2, 1, 0, 5]), pool, 4)
        assert [next(made) for _ in range(3)] == [2, 3, 6]
        with pytest.raises(ZeroDivisionError):
            next(made)


def test_who_waits_is_told_to_stop() -> None:
    """Neither work nor a reader that never ends keeps it from stopping."""
    stop, end = threading.Event(), threading.Event()
    stop.set()
    with ThreadPoolExecutor(2) as pool:
        try:
            with pytest.raises(StoppedError):
                next(in_order(lambda _: end.wait(), iter(range(4)), pool, 2, stop))
            with pytest.raises(StoppedError):
                next(read_ahead(iter(end.wait, None), pool, 2, stop))
        finally:
            end.set()
