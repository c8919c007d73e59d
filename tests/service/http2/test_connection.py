"""A connection in memory, whose other end is h2's client, which takes nothing that it may not be sent, or hand-made."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from grpc import StatusCode
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.service import frames as hand
from tests.service.http2.clock import Clock
from tests.service.http2.ends import Client, GoAway, Ours, cut, read_go_away, split
from vaeserve_service.http2 import budget, frames
from vaeserve_service.http2.frames import Code
from vaeserve_service.http2.messages import HEADER, OK, only_trailer
from vaeserve_service.http2.stream import WINDOW
from vaeserve_service.transport import Status

PING = hand.frame(hand.PING, b"12345678")
UNARY = hand.headers(1) + hand.data(1, b"content")
# What the first header begins with: that the table stays empty.
NO_TABLE = b"\x20"
PATTERN = bytes(range(251)) * 1300


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A time that stands still for the budgets, which then get no more."""
    clock = Clock()
    monkeypatch.setattr(budget, "time", clock)
    return clock


def setting(name: int, value: int) -> bytes:
    """Return a SETTINGS frame of one."""
    return hand.frame(hand.SETTINGS, struct.pack(">HI", name, value))


def kinds(said: Sequence[hand.Frame]) -> list[tuple[int, int]]:
    """Return of each frame its kind and its stream."""
    return [(frame.kind, frame.stream) for frame in said]


def fault(*content: bytes, greet: bool = True, **options: Any) -> GoAway:
    """Return what a connection that what comes is wrong for says as the last thing; all its calls must have ended."""
    ours = Ours(**options)
    if greet:
        ours.greet()
    said = ours.hear(*content)
    assert ours.connection.is_over
    assert ours.overs == 1
    assert not ours.connection.streams
    assert [frame.kind for frame in said].count(hand.GOAWAY) == 1
    return read_go_away(said[-1])


def go_aways(said: Sequence[hand.Frame]) -> list[GoAway]:
    """Return what the frames of GOAWAY say."""
    return [read_go_away(frame) for frame in said if frame.kind == hand.GOAWAY]


def test_it_says_first_what_it_takes() -> None:
    """Before anything came it has sent its settings, and a window for all streams that is larger than the usual."""
    client = Client(Ours(most_streams=7, metadata_bytes=2048))
    client.settle()
    theirs = client.h2.remote_settings
    assert theirs.max_concurrent_streams == 7
    assert theirs.initial_window_size == WINDOW
    assert theirs.max_header_list_size == 2048
    assert theirs.max_frame_size == frames.LARGEST_FRAME
    assert client.h2.outbound_flow_control_window == 4 * 2**20
    assert client.ours.connection.is_greeted


def test_a_greeting_is_an_acknowledgement() -> None:
    """It has been greeted once the other end took its settings, not when that sent its own."""
    ours = Ours()
    ours.connection.receive(hand.PREFACE + hand.settings())
    assert not ours.connection.is_greeted
    ours.connection.receive(hand.frame(hand.SETTINGS, flags=hand.ACK))
    assert ours.connection.is_greeted


@dataclass(frozen=True)
class Call:
    """A call to make."""

    size: int
    padding: int | None
    trailers: bool

    def __call__(self, client: Client[Ours]) -> None:
        """Make it."""
        client.call(PATTERN[: self.size], padding=self.padding, trailers=self.trailers)


@dataclass(frozen=True)
class Do:
    """Something that a client does, and a number for it."""

    what: str
    number: int

    def __call__(self, client: Client[Ours]) -> None:
        """Do it."""
        if self.what == "settle":
            client.settle()
        elif self.what == "window":
            client.window(self.number)
        elif self.what == "read":
            client.read(self.number % 8)
        elif under_way := [each for each in client.answers if each not in client.statuses | client.resets]:
            client.reset(under_way[self.number % len(under_way)])


SIZES = st.integers(0, 100) | st.integers(0, 70_000) | st.integers(0, 300_000)
ACTIONS: st.SearchStrategy[Call | Do] = st.one_of(
    st.builds(Call, SIZES, st.none() | st.integers(0, 255), st.booleans()),
    st.builds(Do, st.sampled_from(["settle", "window", "read", "reset"]), st.integers(0, 70_000)),
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(ACTIONS, max_size=12),
    st.lists(st.integers(1, 40) | st.integers(1, 20_000), min_size=1, max_size=6),
    st.sampled_from([0, 1, 100, 65_535]),
    st.booleans(),
)
def test_whatever_a_client_does_each_call_is_answered_or_taken_back(
    actions: list[Call | Do], sizes: list[int], window: int, prompt: bool
) -> None:
    """Requests of any size in any parts, windows that are tiny or change, resets: all is legal, nothing is left."""
    ours = Ours(prompt=prompt)
    client = Client(ours, window=window, sizes=[max(sizes), *sizes], reads=False)
    for action in actions:
        action(client)
    client.window(2**20)
    client.settle()
    while client.h2.local_settings.initial_window_size == 2**20 and client._unread:
        client.read()
        client.settle()
    contents = {number: PATTERN[: size(action)] for number, action in zip(client.answers, calls(actions), strict=True)}
    for number, content in contents.items():
        if number not in client.resets:
            assert client.statuses[number] == "0"
            assert client.answers[number] == content
        assert content.startswith(bytes(client.answers[number]))
    assert set(client.resets.values()) <= {ErrorCodes.CANCEL}
    for number, call in ours.calls.items():
        assert call.is_closed
        assert call.stream.is_answered or number in client.resets
    assert not ours.connection.streams
    assert not ours.connection.outflow._turns
    assert not ours.connection.is_over
    assert client.away == []


def calls(actions: Sequence[Call | Do]) -> list[Call]:
    """Return the calls among what is done."""
    return [action for action in actions if isinstance(action, Call)]


def size(call: Call) -> int:
    """Return how much a call sends."""
    return call.size


@given(st.integers(1, 400))
def test_a_call_is_answered_at_its_last_byte(size: int) -> None:
    """Wherever what came is split, the answer comes with the end of the request and not before."""
    ours = Ours()
    ours.said()
    *parts, last = split(hand.PREFACE + hand.settings() + UNARY, [size])
    before = ours.hear(*parts, last[:-1])
    assert kinds(before) in ([], [(hand.SETTINGS, 0)])
    after = ours.hear(last[-1:])
    assert kinds(after)[-3:] == [(hand.HEADERS, 1), (hand.DATA, 1), (hand.HEADERS, 1)]
    assert [frame.payload for frame in after[-3:]] == [NO_TABLE + HEADER, b"content", OK]
    assert after[-1].flags == hand.END_STREAM | hand.END_HEADERS
    assert ours.connection.is_idle


def test_many_calls_at_once_are_each_answered() -> None:
    """A hundred requests whose data come in turns get their own back."""
    client = Client(Ours())
    contents = {client.call(PATTERN[number : number + 5000]): number for number in range(100)}
    client.settle()
    assert all(client.answers[stream] == PATTERN[number : number + 5000] for stream, number in contents.items())
    assert set(client.statuses.values()) == {"0"}
    assert client.ours.connection.is_idle


def test_a_client_that_lets_nothing_come_is_waited_for() -> None:
    """Headers are sent, data stays, and each byte that the client lets come comes."""
    client = Client(Ours(), window=0, reads=False)
    number = client.call(b"content")
    client.settle()
    assert client.answers[number] == b""
    assert not client.ours.connection.is_idle
    for count in range(1, 8):
        client.h2.increment_flow_control_window(1, number)
        client.settle()
        assert client.answers[number] == b"content"[:count]
    assert client.statuses == {number: "0"}


def test_a_window_that_shrinks_midway_is_kept() -> None:
    """Data that waits for the window of all streams stays when that of its own is taken away in the meantime."""
    client = Client(Ours(), reads=False)
    first = client.call(PATTERN[:65_535])
    client.settle()
    second = client.call(PATTERN[:5000])
    client.settle()
    assert client.answers == {first: PATTERN[:65_535], second: b""}
    client.window(1000)
    client.settle()
    client.read()
    client.settle()
    assert client.answers[second] == PATTERN[:1000]
    client.window(65_535)
    client.settle()
    assert client.statuses == {first: "0", second: "0"}


def test_settings_are_acknowledged_before_they_are_made_use_of() -> None:
    """What a wider window lets through comes after its acknowledgement, until when the other end counts by the old."""
    ours = Ours()
    ours.hear(hand.PREFACE + hand.settings(initial_window_size=0) + UNARY)
    said = ours.hear(hand.settings(initial_window_size=100))
    assert kinds(said) == [(hand.SETTINGS, 0), (hand.DATA, 1), (hand.HEADERS, 1)]


def test_what_waits_for_a_stream_that_ended_is_dropped() -> None:
    """A call that is taken back while its answer waits leaves nothing, and others go on."""
    client = Client(Ours())
    outflow = client.ours.connection.outflow
    outflow.pause()
    first, second = client.call(b"first"), client.call(b"second")
    client.settle()
    client.reset(first)
    client.settle()
    outflow.resume()
    assert {frame.stream for frame in cut(bytes(client.ours.written))} == {second}
    client.settle()
    assert client.answers == {first: b"", second: b"second"}
    assert client.ours.connection.is_idle
    assert not outflow._turns


def test_an_answer_before_the_request_ended_stops_it() -> None:
    """Whoever is answered and still sends is told that it may stop, and what of it is under way passes."""
    client = Client(Ours(held=True))
    number = client.call(b"begun", ends=False)
    client.settle()
    client.ours.calls[number].answer()
    client.h2.send_data(number, b"more", end_stream=True)
    client.settle()
    assert client.answers[number] == b"begun"
    assert client.statuses == {number: "0"}
    assert client.ours.connection.is_idle
    other = client.call(b"another", ends=False)
    client.settle()
    client.ours.calls[other].answer()
    client.settle()
    assert client.resets == {other: ErrorCodes.NO_ERROR}


def test_more_comes_only_as_it_is_given_back() -> None:
    """A call whose data nobody takes gets one window of it, and the rest as that is given back, padding too."""
    client = Client(Ours(held=True))
    number = client.call(PATTERN[:300_000], padding=99)
    client.settle()
    call = client.ours.calls[number]
    assert WINDOW - 100 * (WINDOW // frames.LARGEST_FRAME + 1) <= len(call.content) < WINDOW
    call.go_on()
    client.settle()
    assert client.answers[number] == PATTERN[:300_000]


@pytest.mark.parametrize("content", [b"", b"1"])
def test_padding_costs_no_window_for_good(content: bytes) -> None:
    """Data of hardly more than padding, or nothing else, is given back whole, so that the stream goes on."""
    client = Client(Ours())
    number = client.call(ends=False)
    for _ in range(2 * WINDOW // 256):
        client.h2.send_data(number, content, pad_length=255)
        client.settle()
    client.h2.send_data(number, b"last", end_stream=True)
    client.settle()
    assert client.answers[number] == content * (2 * WINDOW // 256) + b"last"


def test_padding_alone_is_given_back_whoever_takes_the_data() -> None:
    """A call that takes nothing goes on being sent frames of padding, of which it doesn't hear."""
    client = Client(Ours(held=True))
    number = client.call(b"begun", ends=False)
    for _ in range(2 * WINDOW // 256):
        client.h2.send_data(number, b"", pad_length=255)
        client.settle()
    assert client.ours.calls[number].content == b"begun"
    assert number not in client.resets


def test_a_stream_that_sends_past_its_window_ends() -> None:
    """One byte more than a stream's window ends that stream with FLOW_CONTROL_ERROR, and no other."""
    ours = Ours(held=True).greet()
    ours.hear(hand.headers(1), hand.headers(3))
    full = hand.data(1, bytes(16_384), flags=0) * (WINDOW // 16_384)
    assert ours.hear(full) == []
    assert ours.hear(hand.data(1, b"1", flags=0)) == [
        hand.Frame(hand.RST_STREAM, 0, 1, struct.pack(">I", Code.FLOW_CONTROL_ERROR))
    ]
    assert ours.calls[1].is_closed
    assert list(ours.connection.streams) == [3]


@pytest.mark.parametrize("size", [0, 2**31 - 65_535])
def test_a_window_that_there_cannot_be_ends_its_stream_alone(size: int) -> None:
    """One that grows by nothing is a PROTOCOL_ERROR, one past 2^31 - 1 a FLOW_CONTROL_ERROR, and others go on."""
    ours = Ours(held=True).greet()
    code = Code.FLOW_CONTROL_ERROR if size else Code.PROTOCOL_ERROR
    assert ours.hear(hand.headers(1) + hand.headers(3) + hand.window_update(1, size)) == [
        hand.Frame(hand.RST_STREAM, 0, 1, struct.pack(">I", code))
    ]
    assert ours.calls[1].is_closed
    assert ours.hear(hand.window_update(1, size)) == []
    ours.calls[3].answer()
    assert ours.calls[3].stream.is_answered


def test_the_first_header_says_that_there_is_no_table() -> None:
    """Once, for it stays so: the other end's decoder is told that its table has no size."""
    ours = Ours().greet()
    headers = [frame.payload for frame in ours.hear(UNARY, hand.headers(3, flags=5)) if frame.kind == hand.HEADERS]
    assert headers == [NO_TABLE + HEADER, OK, HEADER, OK]


@pytest.mark.parametrize("size", [0, 1, 100, 4095, 4096, 65_536])
@pytest.mark.parametrize("when", ["first", "later", "changed"])
def test_clients_may_have_a_table_of_any_size(size: int, when: str) -> None:
    """Whether a client says so at first, before its first call or after it, it can read our headers."""
    more = {SettingCodes.HEADER_TABLE_SIZE: size} if when == "first" else {}
    client = Client(Ours(), more=more)
    client.settle()
    if when == "changed":
        client.call(b"content")
        client.settle()
    client.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: size})
    client.settle()
    for _ in range(2):
        number = client.call(b"content")
        client.settle()
        assert client.statuses[number] == "0"


@pytest.mark.parametrize(
    ("size", "parts"), [(16_383, [16_384]), (16_384, [16_384, 1]), (50_000, [16_384, 16_384, 16_384, 849])]
)
def test_a_header_larger_than_a_frame_is_sent_in_parts(size: int, parts: list[int]) -> None:
    """It goes on in CONTINUATION, the first part says whether the stream ends, and the last that it is whole."""
    ours = Ours(held=True).greet()
    ours.hear(hand.headers(1))
    ours.calls[1].stream.finish(PATTERN[:size])
    *said, _ = ours.said()
    assert [len(frame.payload) for frame in said] == parts
    assert b"".join(frame.payload for frame in said) == NO_TABLE + PATTERN[:size]
    assert [frame.kind for frame in said] == [hand.HEADERS] + [hand.CONTINUATION] * (len(parts) - 1)
    ends = [hand.END_HEADERS * (at == len(parts) - 1) for at in range(len(parts))]
    assert [frame.flags for frame in said] == [ends[0] | hand.END_STREAM, *ends[1:]]


def test_all_streams_together_may_send_on() -> None:
    """The window of all is given back whoever takes the data, so that one call can't hold up the others."""
    client = Client(Ours(held=True))
    for _ in range(40):
        client.call(PATTERN[:250_000])
    client.settle()
    assert all(call.is_whole for call in client.ours.calls.values())


def test_data_after_a_request_ended_ends_its_stream() -> None:
    """A request that is whole can't go on: STREAM_CLOSED."""
    ours = Ours(held=True).greet()
    ours.hear(UNARY)
    said = ours.hear(hand.data(1, b"more"))
    assert said == [hand.Frame(hand.RST_STREAM, 0, 1, struct.pack(">I", Code.STREAM_CLOSED))]
    assert ours.calls[1].is_closed
    assert ours.connection.is_idle


def test_a_request_ends_once() -> None:
    """Fields after its end say nothing new, and whoever answers hears of the first end alone."""
    ours = Ours(held=True).greet()
    ours.hear(UNARY)
    assert ours.calls[1].is_whole
    assert ours.hear(hand.frame(hand.HEADERS, flags=5, stream=1)) == []
    ours.calls[1].answer()
    assert ours.connection.is_idle


def test_calls_past_the_limit_are_refused() -> None:
    """Of calls that a client began before it knew the limit those within it are answered, the others may be retried."""
    client = Client(Ours(most_streams=3, held=True))
    numbers = [client.call(b"content") for _ in range(5)]
    client.settle()
    assert client.resets == dict.fromkeys(numbers[3:], ErrorCodes.REFUSED_STREAM)
    assert list(client.ours.calls) == numbers[:3]
    for call in client.ours.calls.values():
        call.answer()
    client.settle()
    assert set(client.statuses) == set(numbers[:3])
    number = client.call()
    client.settle()
    assert number in client.ours.calls


def test_a_malformed_request_ends_its_stream_alone() -> None:
    """Fields that are no call's are a PROTOCOL_ERROR of their stream."""
    ours = Ours().greet()
    changes: dict[str, Any] = {":method": "GET"}
    said = ours.hear(hand.headers(1, **changes), hand.headers(3))
    assert said == [hand.Frame(hand.RST_STREAM, 0, 1, struct.pack(">I", Code.PROTOCOL_ERROR))]
    assert list(ours.calls) == [3]


def test_a_header_may_come_in_parts() -> None:
    """A block in HEADERS and any CONTINUATIONs, padded and with a priority, is one."""
    ours = Ours().greet()
    block = hand.hpack([*hand.call_fields("/a.Service/Method"), ("a", "b" * 1000)])
    first = b"\x07" + b"prior" + block[:10] + bytes(7)
    flags = frames.PADDED | frames.PRIORITIZED | frames.END_STREAM
    parts = list(split(block[10:], [400]))
    said = ours.hear(
        hand.frame(hand.HEADERS, first, flags=flags, stream=1),
        *[hand.frame(hand.CONTINUATION, part, stream=1) for part in parts],
        hand.frame(hand.CONTINUATION, flags=hand.END_HEADERS, stream=1),
    )
    assert kinds(said) == [(hand.HEADERS, 1), (hand.DATA, 1), (hand.HEADERS, 1)]
    assert ours.heads[0].metadata == (("a", "b" * 1000),)
    assert ours.calls[1].is_whole


@pytest.mark.parametrize(
    "content",
    [
        hand.frame(frames.PRIORITY, b"prior", stream=1),
        hand.frame(frames.PRIORITY, b"prior", stream=99),
        hand.frame(hand.GOAWAY, bytes(8)),
        hand.frame(0xA, b"a kind to come"),
        hand.frame(0xFF, b"another", flags=0xFF, stream=5),
        setting(0x99, 2**32 - 1),
        hand.frame(hand.SETTINGS, flags=hand.ACK),
        hand.frame(hand.PING, b"a reply!", flags=hand.ACK),
        hand.data(1, b"", flags=0),
        hand.window_update(1, 5),
        hand.window_update(0, 5),
        setting(frames.INITIAL_WINDOW_SIZE, 2**31 - 1 - 10),
        setting(frames.MAX_FRAME_SIZE, 2**24 - 1),
        setting(frames.MAX_FRAME_SIZE, frames.LARGEST_FRAME),
        setting(frames.ENABLE_PUSH, 1),
        setting(frames.HEADER_TABLE_SIZE, 0),
    ],
)
def test_frames_that_ask_for_nothing_pass(content: bytes) -> None:
    """What says nothing to a server, what is yet to be defined, and what is within its bounds, changes no call."""
    ours = Ours().greet()
    ours.hear(hand.headers(1), content)
    assert ours.hear(hand.data(1, b"content"))[1].payload == b"content"
    assert not ours.connection.is_over


def test_pings_are_answered_with_what_they_hold() -> None:
    """So that whoever asks knows to which of them it is the answer."""
    assert Ours().greet().hear(PING) == [hand.Frame(hand.PING, hand.ACK, 0, b"12345678")]


def test_our_pings_are_answered() -> None:
    """A client hears our question as one, and its answer changes nothing."""
    client = Client(Ours())
    client.ours.connection.ping(b"alive?\0\0")
    client.settle()
    assert not client.ours.connection.is_over


@pytest.mark.parametrize(
    "late",
    [
        hand.data(1, b"content"),
        hand.data(1, b"content", flags=0),
        hand.rst_stream(1),
        hand.window_update(1, 5),
        hand.frame(hand.HEADERS, hand.hpack([("a-trailer", "1")]), flags=hand.END_HEADERS | hand.END_STREAM, stream=1),
    ],
)
def test_what_comes_late_for_a_stream_passes(late: bytes) -> None:
    """A client that didn't know yet that its call had ended did nothing wrong."""
    ours = Ours().greet()
    ours.hear(hand.headers(1), hand.rst_stream(1), hand.headers(3))
    assert ours.hear(late) == []
    assert list(ours.calls) == [1, 3]
    assert ours.hear(hand.data(3, b"content"))[1].payload == b"content"


@pytest.mark.parametrize(
    ("content", "code", "reason"),
    [
        (setting(frames.ENABLE_PUSH, 2), Code.PROTOCOL_ERROR, "ENABLE_PUSH: 2"),
        (setting(frames.INITIAL_WINDOW_SIZE, 2**31), Code.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE: 2147483648"),
        (setting(frames.MAX_FRAME_SIZE, 16_383), Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE: 16383"),
        (setting(frames.MAX_FRAME_SIZE, 2**24), Code.PROTOCOL_ERROR, "MAX_FRAME_SIZE: 16777216"),
        (hand.frame(hand.SETTINGS, b"12345"), Code.FRAME_SIZE_ERROR, "SETTINGS of 5 bytes"),
        (hand.frame(hand.SETTINGS, stream=1), Code.PROTOCOL_ERROR, "kind 4 on stream 1"),
        (hand.frame(hand.PING, b"1234567"), Code.FRAME_SIZE_ERROR, "PING of 7 bytes"),
        (hand.frame(frames.PUSH_PROMISE, bytes(4), stream=1), Code.PROTOCOL_ERROR, "PUSH_PROMISE"),
        (hand.frame(hand.CONTINUATION, stream=1), Code.PROTOCOL_ERROR, "CONTINUATION of no header"),
        (hand.headers(2), Code.PROTOCOL_ERROR, "HEADERS on stream 2"),
        (hand.headers(0), Code.PROTOCOL_ERROR, "HEADERS on stream 0"),
        (hand.headers(1, flags=0) + PING, Code.PROTOCOL_ERROR, "kind 6 within a header"),
        (hand.headers(1, flags=0) + hand.headers(3), Code.PROTOCOL_ERROR, "kind 1 within a header"),
        (
            hand.headers(1, flags=0) + hand.frame(hand.CONTINUATION, stream=3),
            Code.PROTOCOL_ERROR,
            "kind 9 within a header",
        ),
        (hand.headers(1) + hand.headers(1), Code.PROTOCOL_ERROR, "HEADERS on stream 1 again"),
        (hand.headers(3) + hand.headers(1), Code.PROTOCOL_ERROR, "request on stream 1, after 3"),
        (hand.headers(1) + hand.rst_stream(1) + hand.headers(1), Code.PROTOCOL_ERROR, "request on stream 1, after 1"),
        (hand.data(0, b"1"), Code.PROTOCOL_ERROR, "kind 0 on stream 0"),
        (hand.data(1, b"1"), Code.PROTOCOL_ERROR, "kind 0 on stream 1, which isn't open"),
        (hand.headers(1) + hand.data(3, b"1"), Code.PROTOCOL_ERROR, "kind 0 on stream 3"),
        (hand.rst_stream(0), Code.PROTOCOL_ERROR, "kind 3 on stream 0"),
        (hand.rst_stream(1), Code.PROTOCOL_ERROR, "kind 3 on stream 1"),
        (hand.headers(1) + hand.frame(hand.RST_STREAM, b"123", stream=1), Code.FRAME_SIZE_ERROR, "3 bytes"),
        (hand.window_update(1, 5), Code.PROTOCOL_ERROR, "kind 8 on stream 1"),
        (hand.window_update(0, 0), Code.PROTOCOL_ERROR, "WINDOW_UPDATE by 0"),
        (hand.frame(hand.WINDOW_UPDATE, b"12345"), Code.FRAME_SIZE_ERROR, "5 bytes"),
        (hand.window_update(0, 2**31 - 65_535), Code.FLOW_CONTROL_ERROR, "window of 2147483648"),
        (
            hand.headers(1) + hand.window_update(1, 1) + setting(frames.INITIAL_WINDOW_SIZE, 2**31 - 1),
            Code.FLOW_CONTROL_ERROR,
            "window of 2147483648",
        ),
        (hand.frame(hand.PING, bytes(16_385))[:9], Code.FRAME_SIZE_ERROR, "frame of 16385 bytes"),
        (hand.frame(hand.HEADERS, b"\xbe", flags=hand.END_HEADERS, stream=1), Code.COMPRESSION_ERROR, "hpack"),
        (hand.frame(hand.DATA, b"\x01", flags=frames.PADDED, stream=1), Code.PROTOCOL_ERROR, "padding"),
        (hand.frame(hand.HEADERS, b"prio", flags=frames.PRIORITIZED, stream=1), Code.FRAME_SIZE_ERROR, "priority"),
    ],
)
def test_what_breaks_the_protocol_ends_the_connection(content: bytes, code: Code, reason: str) -> None:
    """All calls end, and the other end hears with which code, and what was wrong."""
    said = fault(content + UNARY)
    assert said.code == code
    assert reason in said.reason


@pytest.mark.parametrize("first", [PING, hand.headers(1), hand.window_update(0, 1)])
def test_settings_come_first(first: bytes) -> None:
    """After the preface nothing comes before the other end's settings."""
    said = fault(hand.PREFACE + first, greet=False)
    assert said == GoAway(0, Code.PROTOCOL_ERROR, "no SETTINGS after the preface")


def test_another_protocol_is_told_so() -> None:
    """Who speaks HTTP/1 hears a GOAWAY, and the connection ends."""
    assert fault(b"GET / HTTP/1.1\r\n\r\n", greet=False) == GoAway(0, Code.PROTOCOL_ERROR, "no HTTP/2 preface")


def test_a_fault_names_the_last_call_that_was_begun() -> None:
    """So that the other end knows which of its calls it may make again elsewhere."""
    assert fault(hand.headers(1) + hand.headers(7) + hand.window_update(0, 0)).last == 7


def test_metadata_that_is_much_too_large_ends_the_connection() -> None:
    """What is a little over the limit ends its call; four times as much can't be decoded; more isn't kept to be."""
    field = hand.hpack([("a", "b" * 1000)])
    ours = Ours(metadata_bytes=2048).greet()
    ours.hear(hand.frame(hand.HEADERS, hand.hpack(hand.call_fields("/a/B")) + 3 * field, flags=4, stream=1))
    assert ours.heads[0].fault is not None
    block = hand.hpack(hand.call_fields("/a/B")) + 8 * field
    said = fault(hand.frame(hand.HEADERS, block, flags=4, stream=1), metadata_bytes=2048)
    assert said.code == Code.COMPRESSION_ERROR
    goes_on = [hand.frame(hand.CONTINUATION, field, stream=1)] * 4
    said = fault(hand.headers(1, flags=0), *goes_on, metadata_bytes=2048)
    assert (said.code, said.reason) == (Code.ENHANCE_YOUR_CALM, "metadata size exceeds hard limit (4096 encoded)")


@pytest.mark.parametrize("size", [10, 16_384, 32_000])
def test_what_is_said_of_a_broken_header_fits_in_a_frame(size: int) -> None:
    """A block that can't be decoded isn't sent back in the reason, however large it is."""
    block = b"\0" + b"\xff" * (size - 1)
    first, *parts = split(block, [16_384])
    ours = Ours().greet()
    ours.hear(hand.frame(hand.HEADERS, first, stream=1))
    for part in parts:
        ours.hear(hand.frame(hand.CONTINUATION, part, stream=1))
    (said,) = ours.hear(hand.frame(hand.CONTINUATION, flags=hand.END_HEADERS, stream=1))
    assert read_go_away(said).code == Code.COMPRESSION_ERROR
    assert len(said.payload) <= 1000


IDLE: list[tuple[str, bytes]] = [
    ("pings", PING),
    ("pongs", hand.frame(hand.PING, b"12345678", flags=hand.ACK)),
    ("acknowledgements", hand.frame(hand.SETTINGS, flags=hand.ACK)),
    ("priorities", hand.frame(frames.PRIORITY, b"prior", stream=3)),
    ("unknown", hand.frame(0xFE, b"?")),
    ("goodbyes", hand.frame(hand.GOAWAY, bytes(8))),
    ("windows of all", hand.window_update(0, 1)),
    ("windows", hand.window_update(3, 1)),
    ("late windows", hand.window_update(1, 1)),
    ("late data", hand.data(1, b"", flags=0)),
    ("late padding", hand.frame(hand.DATA, b"\x01\0", flags=frames.PADDED, stream=1)),
    ("late trailers", hand.frame(hand.HEADERS, hand.hpack([("a", "1")]), flags=5, stream=1)),
    ("trailers", hand.frame(hand.HEADERS, hand.hpack([("a", "1")]), flags=5, stream=3)),
    ("empty data", hand.data(3, b"", flags=0)),
    ("padding", hand.frame(hand.DATA, b"\x01\0", flags=frames.PADDED, stream=3)),
]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("content", [each for _, each in IDLE], ids=[name for name, _ in IDLE])
def test_frames_that_carry_nothing_are_counted(content: bytes) -> None:
    """10,000 at once pass, of whatever kind, and the next one ends the connection."""
    ours = Ours(held=True)
    ours.connection.receive(hand.PREFACE + hand.settings())
    ours.hear(hand.headers(1) + hand.rst_stream(1) + hand.headers(3), content * 10_000)
    assert not ours.connection.is_over
    assert go_aways(ours.hear(content)) == [
        GoAway(3, Code.ENHANCE_YOUR_CALM, "too many frames that carry nothing"),
    ]
    assert ours.connection.is_over
    assert ours.calls[3].is_closed


def test_idle_frames_are_allowed_again_with_time(clock: Clock) -> None:
    """500 more a second pass."""
    ours = Ours().greet()
    ours.hear(PING * 9999)  # and an acknowledgement of settings, in the greeting
    clock.now += 1
    ours.hear(PING * 500)
    assert not ours.connection.is_over
    ours.hear(PING)
    assert ours.connection.is_over


@pytest.mark.usefixtures("clock")
def test_late_data_is_not_counted() -> None:
    """What a client had sent of a call that was refused in the meantime is its loss, and no flood."""
    ours = Ours().greet()
    ours.hear(hand.headers(1) + hand.rst_stream(1), hand.data(1, b"1", flags=0) * 10_001)
    assert not ours.connection.is_over


@pytest.mark.usefixtures("clock")
def test_settings_are_counted_apart() -> None:
    """1000 at once pass, which any number of other frames leaves them, and the next one ends the connection."""
    ours = Ours(held=True).greet()
    assert kinds(ours.hear(hand.headers(1), PING * 9000, hand.settings() * 999))[-999:] == [(hand.SETTINGS, 0)] * 999
    assert go_aways(ours.hear(hand.settings())) == [GoAway(1, Code.ENHANCE_YOUR_CALM, "too many settings")]
    assert ours.calls[1].is_closed


def test_settings_are_allowed_again_with_time(clock: Clock) -> None:
    """50 more a second pass."""
    ours = Ours().greet()
    ours.hear(hand.settings() * 999)
    clock.now += 1
    ours.hear(hand.settings() * 50)
    assert not ours.connection.is_over
    ours.hear(hand.settings())
    assert ours.connection.is_over


@pytest.mark.usefixtures("clock")
def test_empty_parts_of_a_header_are_counted() -> None:
    """A header that goes on in parts of nothing is no more than other frames of nothing."""
    said = fault(hand.headers(1, flags=0), hand.frame(hand.CONTINUATION, stream=1) * 10_001)
    assert said.code == Code.ENHANCE_YOUR_CALM


@pytest.mark.usefixtures("clock")
def test_updates_for_what_was_sent_are_not_counted() -> None:
    """A client that takes much in small windows updates them often, and is no flood."""
    client = Client(Ours(), window=1000, reads=False)
    ours = client.ours
    for _ in range(12):
        number = client.call(PATTERN[:300_000])
        client.settle()
        while number not in client.statuses:
            client.h2.increment_flow_control_window(500, number)
            client.read()
            client.settle()
    assert ours.connection._idle_frames._left > 9000


@pytest.mark.usefixtures("clock")
def test_updates_for_small_answers_are_not_counted() -> None:
    """Clients of gRPC itself widen two windows for each call, however little it is answered with, and go on forever."""
    ours = Ours().greet()
    for number in range(1, 24_001, 2):
        ours.connection.receive(hand.headers(number) + hand.window_update(number, 5) + hand.data(number, b"1"))
        ours.connection.receive(hand.window_update(0, 5))
    assert not ours.connection.is_over


@pytest.mark.usefixtures("clock")
def test_updates_for_refusals_are_not_counted() -> None:
    """A call that is answered without data may bring updates too: clients whose calls all fail go on forever."""
    ours = Ours(held=True).greet()
    for number in range(1, 24_001, 2):
        ours.connection.receive(hand.headers(number) + hand.window_update(number, 5) + hand.data(number, b"1"))
        ours.calls[number].stream.finish(only_trailer(Status(StatusCode.NOT_FOUND)))
        ours.connection.receive(hand.window_update(0, 5))
    assert not ours.connection.is_over


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize(
    "vain",
    [
        lambda n: hand.headers(n) + hand.rst_stream(n),
        lambda n: hand.headers(n, te=None),
        lambda n: hand.headers(n) + 2 * hand.data(n, b"1"),
        lambda n: hand.headers(n) + (WINDOW // 16_384 + 1) * hand.data(n, bytes(16_384), flags=0),
        lambda n: hand.headers(n) + hand.window_update(n, 0),
        lambda n: hand.headers(n) + hand.window_update(n, 2**31 - 1),
    ],
    ids=["reset", "broken", "data after the end", "data past the window", "window of 0", "window too large"],
)
def test_calls_in_vain_are_counted(vain: Callable[[int], bytes]) -> None:
    """1000 pass that are taken back, or have to be ended; one more ends the connection (CVE-2023-44487, -2025-8671)."""
    ours = Ours(held=True).greet()
    ours.hear(*[vain(number) for number in range(1, 2001, 2)])
    assert not ours.connection.is_over
    (said,) = go_aways(ours.hear(vain(2001)))
    assert said == GoAway(2001, Code.ENHANCE_YOUR_CALM, "too many calls that were taken back")


@pytest.mark.usefixtures("clock")
def test_calls_past_the_limit_are_counted() -> None:
    """So are calls that are begun where there may be no more."""
    ours = Ours(most_streams=1).greet()
    said = ours.hear(*[hand.headers(number) for number in range(1, 2003, 2)])
    assert kinds(said) == [(hand.RST_STREAM, number) for number in range(3, 2003, 2)]
    assert [away.code for away in go_aways(ours.hear(hand.headers(2003)))] == [Code.ENHANCE_YOUR_CALM]


@pytest.mark.usefixtures("clock")
def test_calls_that_are_answered_earn_those_that_are_taken_back() -> None:
    """Who takes every other call back, as some clients do whose time is short, goes on forever."""
    ours = Ours().greet()
    for number in range(1, 10_001, 4):
        ours.connection.receive(hand.headers(number) + hand.rst_stream(number))
        ours.connection.receive(hand.headers(number + 2) + hand.data(number + 2, b"1"))
    assert not ours.connection.is_over
    assert len(ours.calls) == 5000


@pytest.mark.usefixtures("clock")
def test_calls_that_end_as_their_window_opens_are_answered() -> None:
    """A call whose answer waited for what then came on its stream is none in vain, and earns one too."""
    ours = Ours().greet(window=0)
    for number in range(1, 10_001, 4):
        ours.connection.receive(hand.headers(number) + hand.rst_stream(number))
        ours.connection.receive(hand.headers(number + 2) + hand.data(number + 2, bytes(512)))
        ours.connection.receive(hand.window_update(number + 2, 512) + hand.window_update(0, 512))
    assert not ours.connection.is_over
    assert ours.connection.is_idle


def test_who_leaves_answers_what_is_on_its_way() -> None:
    """Calls that were sent before the client heard of it are answered; then the last is named, and it is over."""
    client = Client(Ours(held=True))
    first = client.call(b"first")
    client.settle()
    client.ours.connection.leave("max_age")
    second = client.call(b"second")
    client.settle()
    assert client.away == [GoAway(2**31 - 1, Code.NO_ERROR, "max_age"), GoAway(second, Code.NO_ERROR, "max_age")]
    assert list(client.ours.connection.streams) == [first, second]
    for number, call in client.ours.calls.items():
        assert not client.ours.connection.is_over
        call.answer()
        client.settle()
        assert client.statuses[number] == "0"
    assert client.ours.overs == 1
    assert client.ours.connection.is_idle


def test_who_leaves_without_calls_is_over_at_the_answer() -> None:
    """With nothing under way it ends once the client must have heard, and says so once."""
    client = Client(Ours())
    number = client.call(b"content")
    client.settle()
    client.ours.connection.leave("connection idle")
    client.ours.connection.leave("again")
    assert not client.ours.connection.is_over
    client.settle()
    assert [(away.last, away.reason) for away in client.away] == [
        (2**31 - 1, "connection idle"),
        (number, "connection idle"),
    ]
    assert client.ours.overs == 1


def test_other_answers_do_not_end_who_leaves() -> None:
    """Only the answer to its own last ping tells that nothing more is on its way, and only when it leaves."""
    ours = Ours().greet()
    goodbye = hand.frame(hand.PING, b"goodbye!", flags=hand.ACK)
    assert ours.hear(goodbye) == []
    ours.connection.leave("max_age")
    away, ping = ours.said()
    assert read_go_away(away).last == 2**31 - 1
    assert (ping.kind, ping.flags) == (hand.PING, 0)
    ours.hear(hand.frame(hand.PING, b"alive?\0\0", flags=hand.ACK))
    ours.hear(hand.frame(hand.PING, ping.payload))
    assert not ours.connection.is_over
    assert kinds(ours.hear(hand.frame(hand.PING, ping.payload, flags=hand.ACK) + PING)) == [(hand.GOAWAY, 0)]
    assert ours.connection.is_over


def test_calls_after_the_last_are_passed_over() -> None:
    """A call that comes after the last was named is not taken, its data neither, and those before it go on."""
    ours = Ours(held=True).greet()
    ours.hear(hand.headers(1))
    ours.connection.leave("max_age")
    ours.hear(hand.frame(hand.PING, b"goodbye!", flags=hand.ACK))
    assert ours.hear(hand.headers(3) + hand.data(3, b"content"), hand.headers(5) + hand.rst_stream(5)) == []
    assert list(ours.calls) == [1]
    ours.calls[1].answer()
    assert ours.overs == 1


def test_a_stop_ends_calls_at_once() -> None:
    """Who is ended says why, has no calls any more, and whoever answered them hears so."""
    ours = Ours(held=True).greet()
    ours.hear(hand.headers(1) + hand.headers(3))
    ours.connection.end(Code.NO_ERROR, "max connection age")
    assert go_aways(ours.said()) == [GoAway(3, Code.NO_ERROR, "max connection age")]
    assert all(call.is_closed for call in ours.calls.values())
    assert ours.overs == 1


def test_a_lost_connection_says_nothing() -> None:
    """Where the socket is gone calls end, once, and nothing is written."""
    ours = Ours(held=True).greet()
    ours.hear(hand.headers(1))
    for _ in range(2):
        ours.connection.lose()
    ours.connection.end(Code.NO_ERROR, "again")
    ours.connection.leave("again")
    assert ours.said() == []
    assert ours.calls[1].is_closed
    assert ours.overs == 1
    ours.calls[1].go_on()
    ours.calls[1].answer()
    assert ours.said() == []


def test_nothing_is_taken_after_the_end() -> None:
    """What the socket still had is passed over: no call begins that nobody would ever end."""
    ours = Ours().greet()
    ours.connection.end(Code.NO_ERROR, "the service is stopping")
    ours.said()
    assert ours.hear(UNARY, PING, hand.headers(3)) == []
    assert ours.calls == {}
    assert not ours.connection.streams


def test_what_follows_a_fault_is_not_taken() -> None:
    """Of what came in one piece nothing is read behind the frame that ended the connection."""
    ours = Ours().greet()
    ours.hear(hand.window_update(0, 0) + UNARY)
    assert ours.calls == {}


KINDS = st.sampled_from(list(range(10))) | st.integers(0, 255)
FRAMES = st.builds(
    lambda kind, payload, flags, stream: hand.frame(kind, payload, flags=flags, stream=stream),
    KINDS,
    st.binary(max_size=20) | st.sampled_from([hand.hpack(hand.call_fields("/a/B")), bytes(4), b"\0\0\0\x01", bytes(8)]),
    st.sampled_from([0, 1, 4, 5, 8, 0x20]) | st.integers(0, 255),
    st.sampled_from([0, 1, 1, 3, 3, 5]) | st.integers(0, 2**31 - 1),
)
CALLS = st.builds(
    lambda stream, flags: hand.headers(2 * stream + 1, flags=flags), st.integers(0, 5), st.sampled_from([4, 4, 5])
)


def hear_garbage(content: bytes, sizes: Sequence[int], *, leaves: bool = False) -> None:
    """Let anything come, which must not raise, and what is said must be frames and an end that is one."""
    ours = Ours(prompt=bool(len(content) % 2), most_streams=3)
    for part in split(content, sizes):
        ours.connection.receive(part)
        if leaves:
            ours.connection.leave("max_age")
    said = cut(bytes(ours.written))
    assert all(len(frame.payload) <= frames.LARGEST_FRAME for frame in said)
    assert ours.overs == ours.connection.is_over
    if ours.connection.is_over:
        assert said[-1].kind == hand.GOAWAY or leaves
        assert not ours.connection.streams
    ours.connection.lose()
    assert not ours.connection.streams
    assert ours.overs == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(FRAMES | FRAMES | CALLS, max_size=15),
    st.lists(st.integers(1, 100), min_size=1, max_size=4),
    st.booleans(),
)
def test_any_frames_are_taken_or_end_the_connection(sent: list[bytes], sizes: list[int], leaves: bool) -> None:
    """Frames of any kind with anything in them, in any order and parts, raise nothing."""
    hear_garbage(hand.PREFACE + hand.settings() + b"".join(sent), sizes, leaves=leaves)


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 100), min_size=1, max_size=4), st.integers(0, 2))
@example(b"", [1], 0)
def test_any_bytes_are_taken_or_end_the_connection(garbage: bytes, sizes: list[int], greeting: int) -> None:
    """Bytes that are no frames raise nothing, after a greeting or a part of one, or none."""
    hear_garbage((hand.PREFACE + hand.settings())[: (0, 24, 33)[greeting]] + garbage, sizes)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=4))
def test_what_a_client_sends_may_be_spoiled_anywhere(spoiled: list[tuple[int, int]]) -> None:
    """A conversation in which some bytes are others raises nothing."""
    client = Client(Ours())
    for size in (0, 10, 600):
        client.call(PATTERN[:size], padding=size % 256, trailers=size == 10)
    client.h2.ping(b"12345678")
    client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 10})
    content = bytearray(client.h2.data_to_send())
    for at, byte in spoiled:
        content[at % len(content)] = byte
    hear_garbage(bytes(content), [100])
