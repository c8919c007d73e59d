"""Data on its way out: in order, in turns, and never more than the windows and the socket let through."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.service.frames import DATA
from tests.service.http2.ends import cut
from vaeserve_service.http2.frames import DEFAULT_WINDOW, LARGEST_FRAME, LARGEST_WINDOW, Code, Http2Error
from vaeserve_service.http2.outflow import Outflow, Outgoing

STREAMS = (1, 3, 5)


class Stream(Outgoing):
    """A stream that counts how often it hears that nothing waits any more."""

    def __init__(self, number: int, *, window: int) -> None:
        super().__init__(number, window=window)
        self.heard = 0

    def emptied(self) -> None:
        """Count it."""
        assert not self.waiting
        self.heard += 1


class Way:
    """An outflow of three streams that checks each frame against the windows as they are when it is written."""

    def __init__(self, *, window: int = 0, in_all: int = DEFAULT_WINDOW) -> None:
        self.outflow = Outflow(self._write)
        self.outs = {number: Stream(number, window=window) for number in STREAMS}
        self.windows = dict.fromkeys(STREAMS, window)
        self.in_all = DEFAULT_WINDOW
        self.queued = {number: bytearray() for number in STREAMS}
        self.sent = {number: bytearray() for number in STREAMS}
        self.order: list[tuple[int, int]] = []  # of the frames: the stream of each, and its size
        self.is_paused = False
        if in_all > DEFAULT_WINDOW:
            self.widen(in_all - DEFAULT_WINDOW)
        else:
            self.in_all = self.outflow._window = in_all

    def send(self, number: int, size: int) -> None:
        """Send so many bytes, which tell where in their stream they are."""
        content = bytes((number + at) % 251 for at in range(len(self.queued[number]), len(self.queued[number]) + size))
        self.queued[number] += content
        self.outflow.send(self.outs[number], content)

    def widen(self, size: int, number: int | None = None) -> None:
        """Let more through, or less."""
        if number is None:
            self.in_all += size
            self.outflow.widen(size)
        else:
            self.windows[number] += size
            self.outflow.widen(size, self.outs[number])

    def pause(self) -> None:
        """Let the socket take nothing."""
        self.is_paused = True
        self.outflow.pause()

    def resume(self) -> None:
        """Let the socket take all."""
        self.is_paused = False
        self.outflow.resume()

    def check(self) -> None:
        """See that all that waits has a reason to."""
        for number in STREAMS:
            assert self.queued[number].startswith(self.sent[number])
            waits = len(self.queued[number]) - len(self.sent[number])
            assert len(self.outs[number].waiting) == waits
            assert not waits or self.is_paused or self.in_all == 0 or self.windows[number] <= 0

    def _write(self, content: bytes) -> None:
        assert not self.is_paused
        for frame in cut(content):
            size = len(frame.payload)
            assert (frame.kind, frame.flags) == (DATA, 0)
            assert 0 < size <= LARGEST_FRAME
            self.in_all -= size
            self.windows[frame.stream] -= size
            assert self.in_all >= 0
            assert self.windows[frame.stream] >= 0
            self.sent[frame.stream] += frame.payload
            self.order.append((frame.stream, size))


def shift(size: int) -> Callable[[Way], None]:
    """Return what changes the window of every stream, as the other end's settings do."""

    def shift_all(way: Way) -> None:
        for number in STREAMS:
            way.widen(size, number)

    return shift_all


NUMBERS = st.sampled_from(STREAMS)
AMOUNTS = st.integers(1, 300) | st.integers(1, 50_000)
ACTIONS: st.SearchStrategy[Callable[[Way], Any]] = st.one_of(
    st.builds(lambda number, size: lambda way: way.send(number, size), NUMBERS, AMOUNTS),
    st.builds(lambda number, size: lambda way: way.widen(size, number), NUMBERS, AMOUNTS),
    st.builds(lambda size: lambda way: way.widen(size), AMOUNTS),
    st.builds(shift, st.integers(-300, 300) | st.integers(-50_000, 50_000)),
    st.just(Way.pause),
    st.just(Way.resume),
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(ACTIONS, min_size=5, max_size=30),
    st.sampled_from([0, 100, 70_000]),
    st.sampled_from([0, 100, DEFAULT_WINDOW]),
)
def test_whatever_happens_data_goes_in_order_within_its_windows(
    actions: list[Callable[[Way], Any]], window: int, in_all: int
) -> None:
    """Sends, windows that grow and shrink, pauses: each frame fits, what may go goes, and in the end all has gone."""
    way = Way(window=window, in_all=in_all)
    for action in actions:
        action(way)
        way.check()
    way.resume()
    way.widen(10**7)
    for number in STREAMS:
        way.widen(10**7, number)
    assert way.sent == way.queued
    assert all(not out.waiting for out in way.outs.values())


def test_what_fits_is_sent_at_once() -> None:
    """With windows that are wide enough nothing waits, and as nothing waited nobody hears of it."""
    way = Way(window=40_000)
    way.send(1, 40_000)
    assert way.order == [(1, 16_384), (1, 16_384), (1, 7232)]
    assert way.outs[1].heard == 0


def test_what_is_larger_than_its_window_begins_to_go() -> None:
    """As much as the window takes is sent, and the rest once there is more; then its stream hears of it, once."""
    way = Way(window=100)
    way.send(1, 150)
    assert (way.order, way.outs[1].heard) == ([(1, 100)], 0)
    way.widen(30, 1)
    assert (way.order, way.outs[1].heard) == ([(1, 100), (1, 30)], 0)
    way.widen(100, 1)
    assert (way.order, way.outs[1].heard) == ([(1, 100), (1, 30), (1, 20)], 1)


def test_streams_have_turns() -> None:
    """Of those that wait each sends a frame, and then the next one does; who is done leaves the others to it."""
    way = Way(window=10**6, in_all=0)
    for number, size in ((1, 50_000), (3, 20_000), (5, 40_000)):
        way.send(number, size)
    way.widen(10**6)
    assert [number for number, _ in way.order] == [1, 3, 5, 1, 3, 5, 1, 5, 1]
    assert way.sent == way.queued


def test_turns_go_on_where_they_stopped() -> None:
    """However little each widening lets through, no stream is left behind the others."""
    way = Way(window=10**6, in_all=0)
    for number in STREAMS:
        way.send(number, 1000)
    for _ in range(30):
        way.widen(50)
    assert {number: len(sent) for number, sent in way.sent.items()} == dict.fromkeys(STREAMS, 500)


def test_a_stream_without_a_window_holds_up_nobody() -> None:
    """Others send past the one whose own window is shut."""
    way = Way(window=0)
    way.send(1, 100)
    way.widen(100, 3)
    way.send(3, 100)
    assert way.order == [(3, 100)]


def test_a_window_that_shrinks_while_its_stream_waits_shuts_it() -> None:
    """A stream that could have sent, were it not for the others' window or the socket, can't once its own is gone."""
    way = Way(window=100, in_all=0)
    way.send(1, 50)
    way.send(3, 50)
    way.widen(-120, 1)
    way.widen(1000)
    assert way.order == [(3, 50)]
    way.widen(30, 1)
    assert way.order == [(3, 50), (1, 10)]
    way.widen(1000, 1)
    assert way.order == [(3, 50), (1, 10), (1, 40)]


def test_nothing_is_sent_while_the_socket_is_full() -> None:
    """A pause holds what is new and what waits, and its end lets both go in order."""
    way = Way(window=100)
    way.pause()
    way.send(1, 70)
    way.widen(100, 1)
    way.send(1, 70)
    assert way.order == []
    way.resume()
    assert (way.order, way.sent) == ([(1, 140)], way.queued)


def test_what_is_forgotten_is_not_sent() -> None:
    """A stream that has ended leaves its turn to others."""
    way = Way(window=100, in_all=0)
    way.send(1, 50)
    way.send(3, 50)
    way.outflow.forget(way.outs[1])
    way.outflow.forget(way.outs[5])
    way.widen(1000)
    assert way.order == [(3, 50)]


@pytest.mark.parametrize("number", [None, 1])
def test_a_window_past_the_largest_is_refused(number: int | None) -> None:
    """2^31 - 1 bytes are the most, of a stream and of all."""
    way = Way(window=DEFAULT_WINDOW)
    way.widen(LARGEST_WINDOW - DEFAULT_WINDOW, number)
    with pytest.raises(Http2Error, match="window of 2147483648 bytes") as raised:
        way.widen(1, number)
    assert raised.value.code == Code.FLOW_CONTROL_ERROR


def test_each_update_needs_256_bytes_that_were_sent() -> None:
    """So many updates are owed as 256 bytes went, and two for each answer of fewer; others are in vain."""
    way = Way(window=10**6, in_all=10**6)
    assert not way.outflow.owes_update()
    way.send(1, 3 * 256 - 1)
    assert [way.outflow.owes_update() for _ in range(3)] == [True, True, False]
    way.send(1, 64)
    assert [way.outflow.owes_update() for _ in range(3)] == [True, True, False]


def test_updates_are_owed_for_what_was_sent_alone() -> None:
    """What waits for a window or for the socket may be answered once it is sent, and its end for two more."""
    way = Way(window=256)
    way.pause()
    way.send(1, 512)
    assert not way.outflow.owes_update()
    way.resume()
    assert [way.outflow.owes_update() for _ in range(2)] == [True, False]
    way.widen(256, 1)
    assert [way.outflow.owes_update() for _ in range(4)] == [True, True, True, False]


def test_single_bytes_earn_no_updates() -> None:
    """Who lets an answer go byte by byte is answered with as many frames, and pays for each."""
    way = Way(window=0)
    way.send(1, 1000)
    owed = 0
    for _ in range(512):
        owed += way.outflow.owes_update()
        way.widen(1, 1)
    assert owed == 0


async def test_who_makes_more_than_is_taken_waits() -> None:
    """There is room for 64 KiB of what waits; whoever makes more goes on once some has gone."""
    way = Way(window=0)
    out = way.outs[1]
    way.send(1, 2**16 - 1)
    assert not out.is_full
    await out.until_room()
    way.send(1, 1001)
    assert out.is_full
    waiting = asyncio.create_task(out.until_room())
    await asyncio.sleep(0)
    way.widen(1000, 1)
    await asyncio.sleep(0)
    assert out.is_full
    assert not waiting.done()
    way.widen(1, 1)
    await waiting
    assert not out.is_full


async def test_who_waited_and_went_away_is_no_hindrance() -> None:
    """Room that comes after whoever waited for it was cancelled is room still."""
    way = Way(window=0)
    out = way.outs[1]
    way.send(1, 2**17)
    waiting = asyncio.create_task(out.until_room())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    way.widen(10**6, 1)
    way.widen(10**6)
    assert way.sent == way.queued
