"""Calls on the streams of a connection in memory: how they are answered, what they hold, and that nothing is left."""

import asyncio
import gzip
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from grpc import StatusCode
from h2.errors import ErrorCodes
from hpack import Decoder
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.service import frames as hand
from tests.service.carrying import raw
from tests.service.frames import message
from tests.service.http2.clock import Clock
from tests.service.http2.ends import Client, End, split
from vaeserve_service.call import Call
from vaeserve_service.drain import Drain
from vaeserve_service.http2.exchange import Exchange, Route, Streaming, Unary
from vaeserve_service.http2.frames import Code
from vaeserve_service.http2.head import Head
from vaeserve_service.http2.inflow import Inflow
from vaeserve_service.http2.stream import WINDOW, Stream
from vaeserve_service.metrics import Metrics
from vaeserve_service.observer import Observer

MOST = 2**20
ECHO, WAIT, FAIL, REPEAT, FIRST, HOLD, MANY = (
    f"/Test/{name}" for name in ("echo", "wait", "fail", "repeat", "first", "hold", "many")
)
RESET = hand.Frame(hand.RST_STREAM, 0, 1, Code.CANCEL.to_bytes(4, "big"))
# Who still sends is told that it may stop.
STOP = hand.Frame(hand.RST_STREAM, 0, 1, Code.NO_ERROR.to_bytes(4, "big"))


class Seen(Observer):
    """Counts the calls that began, and has the codes that they ended with."""

    def __init__(self) -> None:
        super().__init__(Metrics())
        self.begun = 0
        self.codes: list[StatusCode] = []

    def begin(self, call: Call) -> None:
        """Count a call."""
        super().begin(call)
        self.begun += 1

    def end(self, call: Call, code: StatusCode) -> None:
        """Keep how a call ended."""
        super().end(call, code)
        self.codes.append(code)


class Service(End):
    """Our end, whose calls are answered by handlers of each kind; what they took, and what windows they gave."""

    def __init__(self, **options: int) -> None:
        self.seen = Seen()
        self.inflow = Inflow(MOST)
        self.taken: list[bytes] = []
        self.made = 0
        self.cancelled = 0
        self.let = asyncio.Event()
        self.given: Counter[int] = Counter()
        self._drain = Drain()
        unary = {name: raw(getattr(self, name)) for name in ("echo", "wait", "fail")}
        streaming = {name: raw(getattr(self, name), streaming=True) for name in ("repeat", "first", "hold", "many")}
        self._methods = unary | streaming
        super().__init__(**options)

    def accept(self, stream: Stream, head: Head) -> Exchange:
        """Begin a call."""
        method = self._methods[head.rpc]
        route = Route(head.service, head.rpc, method, self.seen, self._drain, MOST)
        kind = Streaming if method.streaming else Unary
        return kind(stream, head, route, inflow=self.inflow)

    def said(self) -> list[hand.Frame]:
        """Return the frames that were written, of whose windows it keeps count."""
        said = super().said()
        for frame in said:
            if frame.kind == hand.WINDOW_UPDATE:
                self.given[frame.stream] += int.from_bytes(frame.payload, "big")
        return said

    async def echo(self, content: bytes, _: Call) -> bytes:
        """Answer with what was asked."""
        self.taken.append(content)
        return content

    async def fail(self, _: bytes, __: Call) -> bytes:
        """End as cancelled, which nobody asked for."""
        raise asyncio.CancelledError

    async def wait(self, content: bytes, _: Call) -> bytes:
        """Answer once that is let."""
        await self._until_let()
        return content

    async def repeat(self, contents: AsyncIterator[bytes], _: Call) -> AsyncIterator[bytes]:
        """Answer each request with itself."""
        async for content in contents:
            self.taken.append(content)
            yield content

    async def first(self, contents: AsyncIterator[bytes], _: Call) -> AsyncIterator[bytes]:
        """Answer the first request, and be done."""
        async for content in contents:
            yield content
            return

    async def hold(self, contents: AsyncIterator[bytes], _: Call) -> AsyncIterator[bytes]:
        """Take no request until that is let, and answer each with itself."""
        await self._until_let()
        async for content in contents:
            yield content

    async def many(self, contents: AsyncIterator[bytes], _: Call) -> AsyncIterator[bytes]:
        """Answer the first request without end."""
        try:
            async for content in contents:
                while True:
                    self.made += 1
                    yield content
        except GeneratorExit:
            self.cancelled += 1
            raise

    async def _until_let(self) -> None:
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def turns() -> None:
    """Let all go on that can."""
    for _ in range(30):
        await asyncio.sleep(0)


async def settled(client: Client[Service]) -> None:
    """Carry bytes back and forth, and let all go on that can."""
    for _ in range(30):
        client.settle()
        await asyncio.sleep(0)


async def until(client: Client[Service], true: Callable[[], bool]) -> None:
    """Go on, until pytest's time is up, with what should come to be."""
    while not true():
        client.settle()
        await asyncio.sleep(0)


def answers(said: list[hand.Frame]) -> list[tuple[int, int, str]]:
    """Return of each answer that ended its stream, the code, and the message."""
    ends = [frame for frame in said if frame.kind == hand.HEADERS and frame.flags & hand.END_STREAM]
    fields = [{str(name): str(value) for name, value in Decoder().decode(frame.payload)} for frame in ends]
    return [
        (frame.stream, int(field["grpc-status"]), field.get("grpc-message", ""))
        for frame, field in zip(ends, fields, strict=True)
    ]


def kinds(said: list[hand.Frame]) -> list[int]:
    """Return the kinds of frames."""
    return [frame.kind for frame in said]


def timers() -> list[asyncio.TimerHandle]:
    """Return the timers that are still to ring."""
    loop: Any = asyncio.get_running_loop()
    return [timer for timer in loop._scheduled if not timer.cancelled()]


def check_nothing_is_left(service: Service) -> None:
    """See that all calls have ended, here as there."""
    assert not service.connection.streams
    assert not service.connection.outflow._turns
    assert not service.inflow._let
    assert service.inflow._size == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert timers() == []
    assert service.seen.begun == len(service.seen.codes)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of the event loop, which stands still until a test says so."""
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock.monotonic)
    return clock


def data(stream: int, content: bytes, *, ends: bool = False) -> bytes:
    """Return the frames of data of any size."""
    parts = list(split(content, [hand.LARGEST_FRAME]))
    return b"".join(hand.data(stream, part, flags=ends and part is parts[-1]) for part in parts)


async def test_a_call_is_answered_by_a_message() -> None:
    """A header, the message and the end of it, in this order; then nothing of the call is left."""
    service = Service().greet()
    assert service.hear(hand.headers(1, ECHO, grpc_timeout="1H") + data(1, message(b"content"), ends=True)) == []
    await turns()
    said = service.said()
    assert kinds(said) == [hand.HEADERS, hand.DATA, hand.HEADERS]
    assert said[1].payload == message(b"content")
    assert answers(said) == [(1, 0, "")]
    check_nothing_is_left(service)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        ([hand.headers(1, ECHO, flags=5)], "none"),
        ([hand.headers(1, ECHO), data(1, message(b"content")[:-1], ends=True)], "a part of one"),
        ([hand.headers(1, ECHO), data(1, message(b"") * 2)], "more than one"),
        ([hand.headers(1, ECHO), data(1, message(b"") * 2, ends=True)], "more than one"),
        ([hand.headers(1, ECHO), data(1, message(b"")), data(1, b"\0")], "more than one"),
        ([hand.headers(1, ECHO), data(1, message(bytes(WINDOW - 9))), data(1, b"\0" * 4)], "more than one"),
    ],
)
async def test_a_call_of_another_number_of_messages_is_refused(sent: list[bytes], why: str) -> None:
    """It is answered once, as soon as that is seen, no handler sees it, and nothing of it is held."""
    service = Service().greet()
    said = service.hear(*sent)
    said += service.hear(hand.data(1, b"more", flags=0), hand.data(1, b"", flags=1))
    assert answers(said) == [(1, 3, f"messages: {why} in a request; expected one")]
    await turns()
    assert service.said() == []
    assert service.taken == []
    check_nothing_is_left(service)


async def test_many_refused_calls_hold_nothing() -> None:
    """However they begin messages that are never whole, those that are refused leave room for others."""
    service = Service().greet()
    begun = message(b"") * 2 + message(bytes(8000), length=MOST)
    for number in range(1, 401, 2):
        service.hear(hand.headers(number, ECHO) + data(number, begun))
    assert not service.connection.is_over
    check_nothing_is_left(service)


async def test_a_message_that_is_too_large_ends_its_call() -> None:
    """By its prefix, whether or not the request goes on, and a stream's handler hears no more."""
    service = Service().greet()
    prefix = message(b"", length=MOST + 1)
    service.hear(hand.headers(1, REPEAT) + data(1, message(b"first")), hand.headers(3, ECHO))
    await turns()
    said = service.hear(data(1, prefix) + data(3, prefix))
    words = f"SERVER: Received message larger than max ({MOST + 1} vs. {MOST})"
    assert answers(said) == [(1, 8, words), (3, 8, words)]
    await turns()
    assert service.taken == [b"first"]
    check_nothing_is_left(service)


async def test_a_stream_that_is_cut_off_is_refused() -> None:
    """Messages that were whole are answered, and then it is said that the last one isn't."""
    service = Service().greet()
    service.hear(hand.headers(1, REPEAT) + data(1, message(b"first") + message(b"second")[:-1], ends=True))
    await turns()
    assert answers(service.said()) == [(1, 3, "messages: the last one is cut off; expected all of it")]
    assert service.taken == [b"first"]
    check_nothing_is_left(service)


@pytest.mark.parametrize(
    ("compressed", "encoding", "why"),
    [
        (1, None, "message: Compression bit set but no encoding is"),
        (2, "gzip", "message: its flag is 2; expected 0 or 1"),
        (1, "gzip", "message: Decompression failed"),
    ],
)
@pytest.mark.parametrize("path", [ECHO, REPEAT])
async def test_a_message_that_cannot_be_read_ends_its_call(
    compressed: int, encoding: str | None, why: str, path: str
) -> None:
    """It is said what is wrong with it, and no handler sees it."""
    service = Service()
    client = Client(service)
    number = client.call(message(b"content", compressed=compressed), path=path, grpc_encoding=encoding)
    await until(client, lambda: number in client.statuses)
    assert client.statuses == {number: "13"}
    assert why in client.words[number]
    assert service.seen.codes == [StatusCode.INTERNAL]
    assert service.taken == []
    check_nothing_is_left(service)


@pytest.mark.parametrize("path", [ECHO, HOLD])
async def test_whole_messages_that_nobody_takes_are_bounded(path: str) -> None:
    """Who obeys the windows sends one large message after another, and all come as those before them are taken."""
    service = Service()
    client = Client(service)
    size = MOST - 5
    numbers = [client.call(message(bytes(size)), path=path, ends=False) for _ in range(8)]
    await settled(client)
    oldest, *others = numbers
    left = {number: len(client._bodies[number].left) for number in others}
    assert oldest not in client._bodies
    assert len(left) == len(others)
    assert sum(service.given[number] for number in others) <= MOST + WINDOW
    assert sum(size - left[number] for number in others) <= len(others) * WINDOW + MOST + WINDOW
    service.let.set()
    for number in numbers:
        assert number not in client._bodies
        client.end(number)
        await until(client, lambda number=number: number in client.statuses)  # type: ignore[misc]
        assert len(client.answers[number]) == size + 5
        await settled(client)
    assert set(client.statuses.values()) == {"0"}
    check_nothing_is_left(service)


async def test_small_messages_that_nobody_takes_are_bounded() -> None:
    """A stream whose handler takes none gets its first window and no more, of however many messages that are."""
    service = Service()
    client = Client(service)
    content = message(b"some content") * 20_000
    number = client.call(content, path=HOLD)
    await settled(client)
    assert len(content) - len(client._bodies[number].left) == WINDOW
    assert service.given[number] == 0
    service.let.set()
    await until(client, lambda: number in client.statuses)
    assert client.answers[number] == content
    check_nothing_is_left(service)


async def test_a_message_that_will_never_be_whole_leaves_its_place(clock: Clock) -> None:
    """A large call that is taken back, late or refused lets those on that waited behind it."""
    service = Service()
    client = Client(service)
    first, second = (client.call(message(bytes(MOST - 5)), path=ECHO, ends=False) for _ in range(2))
    third = client.call(message(bytes(MOST - 5)), path=ECHO, ends=False, grpc_timeout="5S")
    fourth = client.call(message(bytes(MOST - 5)), path=ECHO)
    await settled(client)
    client.reset(first)
    await settled(client)
    client.h2.send_data(second, b"and another")
    await settled(client)
    clock.now += 5.1
    await until(client, lambda: fourth in client.statuses)
    assert client.statuses == {second: "3", third: "4", fourth: "0"}
    check_nothing_is_left(service)


async def test_what_is_taken_leaves_its_place() -> None:
    """A stream whose large messages are taken holds up no other, though it goes on."""
    service = Service()
    client = Client(service)
    stream = client.call(message(bytes(MOST)), path=REPEAT, ends=False)
    await settled(client)
    assert service.taken == [bytes(MOST)]
    numbers = [client.call(message(bytes(MOST)), path=ECHO) for _ in range(3)]
    await settled(client)
    assert client.statuses == dict.fromkeys(numbers, "0")
    client.end(stream)
    await settled(client)
    check_nothing_is_left(service)


async def test_a_part_of_a_message_is_not_given_back_with_the_one_before_it() -> None:
    """When a small message is taken no more may come of the large one after it, as long as others are let on."""
    service = Service()
    client = Client(service)
    numbers = [client.call(message(bytes(MOST)), path=ECHO, ends=False) for _ in range(3)]
    stream = client.call(message(b"small") + message(bytes(MOST)), path=HOLD)
    await settled(client)
    service.let.set()
    await settled(client)
    assert service.given[stream] == 0
    for number in numbers:
        client.end(number)
        await settled(client)
    assert client.statuses == dict.fromkeys([*numbers, stream], "0")
    check_nothing_is_left(service)


SIZES = st.lists(st.integers(0, 100) | st.integers(0, 200_000) | st.integers(250_000, 600_000), max_size=5)


@pytest.mark.parametrize("sizes", [[100_000, 300_000], [0, 600_000], [131_000, 132_000], [5, 5, 400_000, 5, 400_000]])
@pytest.mark.parametrize("held", [False, True])
async def test_a_large_message_may_follow_small_ones(sizes: list[int], held: bool) -> None:
    """A stream goes on whose window was used up by messages and a part of one, once those before it are taken."""
    service = Service()
    client = Client(service)
    content = b"".join(message(bytes(size)) for size in sizes)
    number = client.call(content, path=HOLD if held else REPEAT)
    await settled(client)
    service.let.set()
    await settled(client)
    assert client.statuses == {number: "0"}
    assert client.answers[number] == content
    check_nothing_is_left(service)


@settings(max_examples=30, deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=3), st.sampled_from([REPEAT, HOLD]), st.sampled_from([1000, 65_535, 2**20]))
@example([[100_000, 300_000]], HOLD, 65_535)
def test_streams_of_messages_of_any_size_are_answered(sizes: list[list[int]], path: str, window: int) -> None:
    """All messages of all streams come back, whenever they are taken, and whatever windows the client has."""

    async def talk() -> None:
        service = Service()
        client = Client(service, window=window)
        contents = [b"".join(message(bytes(size)) for size in stream) for stream in sizes]
        numbers = [client.call(content, path=path) for content in contents]
        await settled(client)
        service.let.set()
        for _ in range(20):
            await settled(client)
        assert client.statuses == dict.fromkeys(numbers, "0")
        assert [client.answers[number] for number in numbers] == contents
        check_nothing_is_left(service)

    asyncio.run(talk())


async def test_a_late_call_is_told_so(clock: Clock) -> None:
    """When its time is over, whether its handler or its request is waited for, which then ends."""
    service = Service().greet()
    service.hear(hand.headers(1, WAIT, grpc_timeout="5S") + data(1, message(b""), ends=True))
    service.hear(hand.headers(3, ECHO, grpc_timeout="5S") + data(3, message(b"")))
    await turns()
    clock.now += 4.9
    await turns()
    assert service.said() == []
    clock.now += 0.2
    await turns()
    assert answers(service.said()) == [(1, 4, "Deadline Exceeded"), (3, 4, "Deadline Exceeded")]
    assert service.cancelled == 1
    assert service.seen.codes == [StatusCode.DEADLINE_EXCEEDED]
    check_nothing_is_left(service)


@pytest.mark.parametrize(("path", "code"), [(ECHO, StatusCode.OK), (MANY, StatusCode.DEADLINE_EXCEEDED)])
async def test_a_late_call_whose_answer_waits_is_reset(clock: Clock, path: str, code: StatusCode) -> None:
    """What nobody takes in time is of no use any more, whether or not all of it was made."""
    service = Service().greet(window=0)
    service.hear(hand.headers(1, path, grpc_timeout="5S") + data(1, message(b"content"), ends=True))
    await turns()
    assert kinds(service.said()) == [hand.HEADERS]
    clock.now += 5.1
    await turns()
    assert service.said() == [RESET]
    assert service.seen.codes == [code]
    assert service.hear(hand.window_update(1, 100)) == []
    check_nothing_is_left(service)


async def test_a_timer_ends_with_its_call(clock: Clock) -> None:
    """However a call ends its time doesn't matter any more."""
    service = Service().greet()
    service.hear(hand.headers(1, ECHO, grpc_timeout="5S") + data(1, message(b""), ends=True))
    service.hear(hand.headers(3, ECHO, grpc_timeout="5S") + data(3, message(b"") * 2))
    service.hear(hand.headers(5, WAIT, grpc_timeout="5S") + data(5, message(b""), ends=True))
    service.hear(hand.headers(7, REPEAT, grpc_timeout="5S"))
    await turns()
    assert len(timers()) == 2
    service.hear(hand.rst_stream(5), data(7, message(b""), ends=True))
    await turns()
    service.said()
    check_nothing_is_left(service)
    clock.now += 10
    await turns()
    assert service.said() == []


class Counting:
    """Inflates as zlib does, and counts how much comes out."""

    sizes: list[int]

    def __init__(self, bits: int) -> None:
        self._inflater = _INFLATER(bits)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inflater, name)

    def decompress(self, content: bytes, most: int = 0) -> bytes:
        """Inflate."""
        out: bytes = self._inflater.decompress(content, most)
        self.sizes.append(len(out))
        return out


_INFLATER: Any = zlib.decompressobj
BOMB = gzip.compress(bytes(16 * MOST))


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much came out of each message that was inflated."""
    Counting.sizes = []
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    return Counting.sizes


async def test_a_bomb_is_not_inflated_before_its_request_has_ended(sizes: list[int]) -> None:
    """What a call that may still come to nothing would cost isn't spent, and then no more than shows what it is."""
    service = Service()
    client = Client(service)
    numbers = [client.call(message(BOMB, compressed=1), path=ECHO, ends=False, grpc_encoding="gzip") for _ in range(5)]
    await settled(client)
    assert sizes == []
    for number in numbers[1:]:
        client.reset(number)
    client.end(numbers[0])
    await until(client, lambda: numbers[0] in client.statuses)
    assert client.statuses == {numbers[0]: "8"}
    assert sizes == [MOST + 1]
    check_nothing_is_left(service)


async def test_a_bomb_in_a_stream_is_not_inflated_before_it_is_taken(sizes: list[int]) -> None:
    """Of any number of them one is, when the handler asks for a request, and the call ends."""
    service = Service()
    client = Client(service)
    number = client.call(message(BOMB, compressed=1) * 3, path=HOLD, ends=False, grpc_encoding="gzip")
    await settled(client)
    assert sizes == []
    service.let.set()
    await until(client, lambda: number in client.statuses)
    assert client.statuses == {number: "8"}
    assert sizes == [MOST + 1]
    check_nothing_is_left(service)


@pytest.mark.parametrize("path", [ECHO, REPEAT])
async def test_compressed_messages_are_read(path: str) -> None:
    """A message is handed over as it was before it was compressed, and one that wasn't as it is."""
    service = Service()
    client = Client(service)
    content = message(gzip.compress(b"content"), compressed=1)
    number = client.call(content if path is ECHO else content + message(b"plain"), path=path, grpc_encoding="gzip")
    await until(client, lambda: number in client.statuses)
    assert service.taken == [b"content", b"plain"][: 1 + (path is REPEAT)]
    check_nothing_is_left(service)


async def test_who_goes_while_a_message_is_inflated_is_forgotten(sizes: list[int]) -> None:
    """A call that is taken back then is cancelled, and its handler never begins."""
    service = Service()
    client = Client(service)
    number = client.call(message(BOMB, compressed=1), path=ECHO, grpc_encoding="gzip")
    client.settle()
    await asyncio.sleep(0)
    client.reset(number)
    await until(client, lambda: bool(sizes) and len(asyncio.all_tasks()) == 1)
    assert service.seen.codes == [StatusCode.CANCELLED]
    check_nothing_is_left(service)


async def test_many_small_messages_take_turns_with_other_calls() -> None:
    """A frame of thousands of them holds no other call up for more than some of them at a time."""
    service = Service().greet(window=10**6)
    service.hear(hand.headers(1, REPEAT))
    await turns()
    service.hear(data(1, message(b"") * 3000), hand.headers(3, ECHO) + data(3, message(b"other"), ends=True))
    while b"other" not in service.taken:
        await asyncio.sleep(0)
    assert service.taken.index(b"other") <= 64
    while len(service.taken) < 3001:
        before = len(service.taken)
        await asyncio.sleep(0)
        assert len(service.taken) - before <= 16
    said = service.hear(hand.data(1, b""))
    await turns()
    said += service.said()
    assert [frame.stream for frame in said if frame.kind == hand.DATA].count(1) == 3000
    check_nothing_is_left(service)


async def test_who_does_not_read_stops_who_writes() -> None:
    """A stream of answers without end is made as far as there is room, on as they are taken, and ends with its call."""
    service = Service().greet(window=0)
    service.hear(hand.headers(1, MANY) + data(1, message(bytes(1019))))
    await turns()
    assert service.made == 64
    service.hear(hand.window_update(1, 1024 * 10))
    await turns()
    assert service.made == 74
    service.hear(hand.rst_stream(1))
    await turns()
    assert service.cancelled == 1
    assert service.seen.codes == [StatusCode.CANCELLED]
    check_nothing_is_left(service)


async def test_an_answer_may_end_before_its_requests() -> None:
    """Who still sends is told to stop, and what was on its way passes."""
    service = Service().greet()
    service.hear(hand.headers(1, FIRST) + data(1, message(b"first") + message(b"second")))
    await turns()
    said = service.said()
    assert kinds(said) == [hand.HEADERS, hand.DATA, hand.HEADERS, hand.RST_STREAM]
    assert said[-1] == STOP
    assert service.hear(data(1, message(bytes(100_000), length=MOST)), hand.data(1, b"")) == []
    check_nothing_is_left(service)


async def test_what_comes_while_an_ended_answer_waits_is_bounded() -> None:
    """A call whose answer is made but not taken holds no more than others, and nothing once it is."""
    service = Service()
    client = Client(service, window=0)
    number = client.call(message(b"first") + message(bytes(3 * MOST), length=MOST), path=FIRST, ends=False)
    await settled(client)
    assert service.seen.codes == [StatusCode.OK]
    assert service.given[number] <= MOST
    client.window(100)
    await settled(client)
    assert client.statuses == {number: "0"}
    assert client.resets == {number: ErrorCodes.NO_ERROR}
    check_nothing_is_left(service)


async def test_a_call_that_is_taken_back_is_cancelled() -> None:
    """Its handler ends, nothing is said any more, and it is seen as cancelled, unless it hadn't begun."""
    service = Service().greet()
    service.hear(hand.headers(1, WAIT) + data(1, message(b""), ends=True), hand.headers(3, HOLD))
    await turns()
    service.hear(hand.headers(5, WAIT) + data(5, message(b""), ends=True) + hand.rst_stream(5))
    service.hear(hand.headers(7, WAIT) + data(7, message(b"")) + hand.rst_stream(7))
    assert service.hear(hand.rst_stream(1) + hand.rst_stream(3)) == []
    await turns()
    assert service.said() == []
    assert service.cancelled == 2
    assert service.seen.codes == [StatusCode.CANCELLED] * 2
    check_nothing_is_left(service)


async def test_a_lost_connection_cancels_its_calls() -> None:
    """All of them, in whatever they are, and nothing of them is left."""
    service = Service().greet(window=0)
    ended = {WAIT, ECHO, MANY}
    for number, path in enumerate((WAIT, ECHO, MANY, HOLD, REPEAT)):
        content = data(2 * number + 1, message(b"content"), ends=path in ended)
        service.hear(hand.headers(2 * number + 1, path, grpc_timeout="1H") + content)
    service.hear(hand.headers(11, ECHO) + data(11, message(bytes(200_000), length=MOST)))
    await turns()
    service.said()
    service.connection.lose()
    await turns()
    assert service.said() == []
    assert Counter(service.seen.codes) == {StatusCode.CANCELLED: 4, StatusCode.OK: 1}
    check_nothing_is_left(service)


async def test_a_handler_that_ends_as_cancelled_leaves_nobody_waiting() -> None:
    """A call that neither its caller nor its time ended is answered."""
    service = Service().greet()
    service.hear(hand.headers(1, FAIL) + data(1, message(b""), ends=True))
    await turns()
    ((stream, code, words),) = answers(service.said())
    assert (stream, code) == (1, 1)
    assert "cancelled here" in words
    check_nothing_is_left(service)


@dataclass(frozen=True)
class Act:
    """Something that a client does: a call, or what becomes of one."""

    what: str
    path: str
    size: int
    ends: bool
    timeout: str

    async def __call__(self, client: Client[Service], clock: Clock) -> None:
        """Do it."""
        under_way = [each for each in client.answers if each not in client.statuses | client.resets]
        number = under_way[self.size % len(under_way)] if under_way else 0
        if self.what == "call" and client.h2.open_outbound_streams < 5:
            content = message(PATTERN[: self.size]) * (1 + self.size % 2 * (self.path not in (ECHO, WAIT)))
            client.call(
                content[: len(content) - self.size % 3], path=self.path, ends=self.ends, grpc_timeout=self.timeout
            )
        elif self.what == "reset" and number:
            client.reset(number)
        elif self.what == "pass":
            clock.now += 4
        elif self.what == "let":
            client.ours.let.set()
        elif self.what == "window":
            client.window(self.size)
        else:
            client.settle()
        for _ in range(self.size % 4):
            await asyncio.sleep(0)


PATTERN = bytes(range(251)) * 2000
ACTS = st.builds(
    Act,
    st.sampled_from(["call", "call", "call", "reset", "pass", "let", "window", "settle"]),
    st.sampled_from([ECHO, WAIT, FAIL, REPEAT, FIRST, HOLD, MANY]),
    st.integers(0, 100) | st.integers(0, 400_000),
    st.booleans(),
    st.sampled_from(["1H", "10S", "0S"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTS, min_size=3, max_size=20), st.sampled_from([0, 100, 65_535]), st.booleans())
def test_whatever_a_client_does_nothing_is_left(acts: list[Act], window: int, leaves: bool) -> None:
    """Calls of each kind that end in each way, windows of any size: in the end no task, timer or byte of them is."""

    async def talk() -> None:
        service = Service(most_streams=5)
        client = Client(service, window=window)
        loop: Any = asyncio.get_running_loop()
        loop.time = (clock := Clock()).monotonic
        for act in acts:
            await act(client, clock)
        await settled(client)
        if leaves:
            service.connection.leave("max_age")
            await settled(client)
        assert not client.away[1:] or leaves
        service.connection.lose()
        await turns()
        check_nothing_is_left(service)
        assert service.overs == 1

    asyncio.run(talk())
