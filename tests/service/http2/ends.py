"""Both ends of a connection in memory: ours, whose calls are echoed, and a client as the h2 library makes it."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import cycle
from typing import Generic, NamedTuple, Self, TypeVar

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes, Settings

from tests.service import frames as hand
from tests.service.frames import Frame
from vaeserve_service.http2.connection import Connection
from vaeserve_service.http2.head import Head, read_head
from vaeserve_service.http2.messages import HEADER, OK
from vaeserve_service.http2.stream import Receiver, Stream

E = TypeVar("E", bound="End")

METADATA_BYTES = 16_384


def split(content: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """Yield parts of these sizes, again and again, and what is left."""
    at = 0
    for size in cycle(sizes):
        if at >= len(content):
            return
        yield content[at : at + size]
        at += size


def cut(content: bytes) -> list[Frame]:
    """Return the frames that content is made of; fails unless it is whole ones."""
    cut, at = [], 0
    while at < len(content):
        size = int.from_bytes(content[at : at + 3], "big")
        number = int.from_bytes(content[at + 5 : at + 9], "big")
        payload = content[at + 9 : at + 9 + size]
        assert len(payload) == size
        cut.append(Frame(content[at + 3], content[at + 4], number, payload))
        at += 9 + size
    return cut


class GoAway(NamedTuple):
    """What a GOAWAY says."""

    last: int
    code: int
    reason: str


def read_go_away(frame: Frame) -> GoAway:
    """Return what a frame of GOAWAY says."""
    last, code = (int.from_bytes(frame.payload[at : at + 4], "big") for at in (0, 4))
    return GoAway(last, code, frame.payload[8:].decode())


class Echo:
    """A call that is answered with its own request: once that is whole, and as it comes if it is `prompt`.

    It holds what came while it is `held`, and gives nothing of it back.
    """

    def __init__(self, stream: Stream, *, prompt: bool = False, held: bool = False) -> None:
        self.stream = stream
        self.content = bytearray()
        self.is_whole = False
        self.is_closed = False
        self._prompt = prompt
        self._held = held
        self._unreturned = 0
        if prompt:
            stream.start(HEADER)

    def receive(self, content: bytes, size: int) -> None:
        """Take some data."""
        assert not self.is_whole
        assert not self.is_closed
        self.content += content
        self._unreturned += size
        if self._prompt:
            self.stream.send(content)
        if not self._held:
            self.go_on()

    def end(self) -> None:
        """Answer, as the request is whole."""
        assert not self.is_whole
        assert not self.is_closed
        self.is_whole = True
        if not self._held:
            self.answer()

    def close(self) -> None:
        """Hear that the stream has ended, once, and as it has."""
        assert not self.is_closed
        assert not self.stream.is_open
        self.is_closed = True

    def go_on(self) -> None:
        """Give back what was held, and hold no more."""
        self._held = False
        self.stream.give_back(self._unreturned)
        self._unreturned = 0

    def answer(self) -> None:
        """Answer with what there is of a request."""
        if not self._prompt:
            self.stream.start(HEADER)
            self.stream.send(bytes(self.content))
        self.stream.finish(OK)


class End(ABC):
    """Our end: what it wrote, and whether it is over."""

    def __init__(self, *, most_streams: int = 100, metadata_bytes: int = METADATA_BYTES) -> None:
        self.overs = 0
        self.written = bytearray()
        self.connection: Connection[Head] = Connection(
            most_streams=most_streams,
            metadata_bytes=metadata_bytes,
            read=partial(read_head, most_bytes=metadata_bytes),
            accept=self.accept,
            write=self._write,
            on_over=self._hear_over,
        )

    @abstractmethod
    def accept(self, stream: Stream, head: Head) -> Receiver | None:
        """Return what takes a call."""

    def greet(self, *, window: int = 65_535) -> Self:
        """Take a client's greeting, who lets so much come of an answer, and forget what was written so far."""
        self.connection.receive(
            hand.PREFACE + hand.settings(initial_window_size=window) + hand.frame(hand.SETTINGS, flags=hand.ACK)
        )
        self.written.clear()
        return self

    def hear(self, *content: bytes) -> list[Frame]:
        """Return the frames that are written for what comes."""
        for part in content:
            self.connection.receive(part)
        return self.said()

    def said(self) -> list[Frame]:
        """Return the frames that were written since this was last asked."""
        said = cut(bytes(self.written))
        self.written.clear()
        return said

    def _write(self, content: bytes) -> None:
        assert not self.overs
        self.written += content

    def _hear_over(self) -> None:
        self.overs += 1


class Ours(End):
    """Our end, and the calls that it took, which are echoed."""

    def __init__(self, *, prompt: bool = False, held: bool = False, **options: int) -> None:
        self.calls: dict[int, Echo] = {}
        self.heads: list[Head] = []
        self._make = partial(Echo, prompt=prompt, held=held)
        super().__init__(**options)

    def accept(self, stream: Stream, head: Head) -> Receiver | None:
        """Take a call."""
        assert not self.connection.is_over
        self.heads.append(head)
        self.calls[stream.number] = call = self._make(stream)
        return call


class Body:
    """What of a request is still to be sent."""

    def __init__(self, content: bytes, *, padding: int | None, trailers: bool, ends: bool) -> None:
        self.left = content
        self.padding = padding
        self.trailers = trailers
        self.ends = ends


class Client(Generic[E]):
    """A client, and what it heard; raises h2's ProtocolError for anything that it may not be sent.

    After a GOAWAY h2 would hear nothing more, so those are read here.
    """

    def __init__(
        self,
        ours: E,
        *,
        window: int = 65_535,
        sizes: Sequence[int] = (2**30,),
        reads: bool = True,
        more: Mapping[SettingCodes, int] | None = None,
    ) -> None:
        self.ours = ours
        self.answers: dict[int, bytearray] = {}
        self.statuses: dict[int, str] = {}
        self.words: dict[int, str] = {}
        self.resets: dict[int, int] = {}
        self.away: list[GoAway] = []
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self.h2.local_settings = Settings(
            client=True,
            initial_values={SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: window, **(more or {})},
        )
        self._sizes = sizes
        self._reads = reads
        self._is_greeted = False
        self._unread: deque[tuple[int, int]] = deque()
        self._bodies: dict[int, Body] = {}
        self.h2.initiate_connection()

    def call(
        self,
        content: bytes = b"",
        *,
        path: str = "/a.Service/Method",
        padding: int | None = None,
        trailers: bool = False,
        ends: bool = True,
        **fields: str | None,
    ) -> int:
        """Begin a call, and return its stream's number; its content goes as the windows let it."""
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, hand.call_fields(path, **fields))
        self._bodies[number] = Body(content, padding=padding, trailers=trailers, ends=ends)
        self.answers[number] = bytearray()
        self.send()
        return number

    def send(self) -> None:
        """Send what the windows allow."""
        for number, body in list(self._bodies.items()):
            extra = 0 if body.padding is None else body.padding + 1
            while body.left:
                window = min(self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size) - extra
                if window <= 0:
                    break
                part, body.left = body.left[:window], body.left[window:]
                self.h2.send_data(number, part, pad_length=body.padding)
            if not body.left:
                del self._bodies[number]
                if body.ends:
                    self.end(number, trailers=body.trailers)

    def end(self, number: int, *, trailers: bool = False) -> None:
        """End a request."""
        if trailers:
            self.h2.send_headers(number, [("a-trailer", "1")], end_stream=True)
        else:
            self.h2.end_stream(number)

    def reset(self, number: int) -> None:
        """Take a call back."""
        self._bodies.pop(number, None)
        self.h2.reset_stream(number, ErrorCodes.CANCEL)
        self.resets[number] = ErrorCodes.CANCEL

    def window(self, size: int) -> None:
        """Say how much may come on a stream."""
        if not self._is_greeted:  # or h2 would take the acknowledgement of its first settings for that of these
            self.settle()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: size})

    def read(self, count: int | None = None) -> None:
        """Let more come, for so many of the frames of data that came, or all."""
        for _ in range(len(self._unread) if count is None else min(count, len(self._unread))):
            size, number = self._unread.popleft()
            self.h2.acknowledge_received_data(size, number)

    def settle(self) -> None:
        """Carry bytes back and forth until both ends are silent."""
        self._hear()
        while sent := self.h2.data_to_send():
            for part in split(sent, self._sizes):
                self.ours.connection.receive(part)
            self._hear()

    def _hear(self) -> None:
        for frame in self.ours.said():
            if frame.kind == hand.GOAWAY:
                self.away.append(read_go_away(frame))
                continue
            content = hand.frame(frame.kind, frame.payload, flags=frame.flags, stream=frame.stream)
            for event in self.h2.receive_data(content):
                self._take(event)
        if self._reads:
            self.read()
        self.send()

    def _take(self, event: events.Event) -> None:
        match event:
            case events.DataReceived():
                self.answers[event.stream_id] += event.data
                self._unread.append((event.flow_controlled_length, event.stream_id))
            case events.TrailersReceived() | events.ResponseReceived():
                fields = dict(event.headers)
                if b"grpc-status" in fields:
                    self.statuses[event.stream_id] = fields[b"grpc-status"].decode()
                    self.words[event.stream_id] = fields.get(b"grpc-message", b"").decode()
            case events.SettingsAcknowledged():
                self._is_greeted = True
            case events.StreamReset():
                self.resets.setdefault(event.stream_id, event.error_code)
                self._bodies.pop(event.stream_id, None)
