"""A connection of HTTP/2, the server's end, without its socket. Source: RFC 9113."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from vaeserve_service.http2 import frames
from vaeserve_service.http2.budget import Budget
from vaeserve_service.http2.fields import FieldDecoder, Fields
from vaeserve_service.http2.frames import Code, Frame, FrameReader, Http2Error
from vaeserve_service.http2.outflow import Outflow
from vaeserve_service.http2.stream import WINDOW, Receiver, Stream

T = TypeVar("T")

# Bytes that the other end may send in all before it hears that they came.
_WINDOW = 4 * 2**20
# Frames that carry nothing: pings, empty data, windows that nothing was sent for. 10,000 take some 20 ms.
_IDLE_FRAMES, _IDLE_FRAMES_A_SECOND = 10_000, 500.0
# Settings, which may change the windows of all streams. 1000 take up to a tenth of a second.
_SETTINGS, _SETTINGS_A_SECOND = 1000, 50.0
# Calls that are taken back, begun past the limit of streams, or against the rules, beyond those that were answered
# (CVE-2023-44487, CVE-2025-8671). A thousand take some 70 ms.
_VAIN_CALLS, _VAIN_CALLS_A_SECOND = 1000, 500.0
# Says that the table of the other end's decoder stays empty, whatever size it allows (RFC 7541, 4.2).
_NO_TABLE = b"\x20"
# What is sent in a ping to hear that all that was sent before it has come.
_LAST_ORDERS = b"goodbye!"


class Connection(Generic[T]):
    """One end of a connection: `receive` takes what comes, and `write` has what goes.

    read: what is made of a request's fields, None where it is malformed.
    accept: is given each request's stream and what was made of its fields, and returns what takes the rest of it.
    on_over: is called once the connection has ended, and nothing more of it comes.
    """

    def __init__(
        self,
        *,
        most_streams: int,
        metadata_bytes: int,
        read: Callable[[Fields], T | None],
        accept: Callable[[Stream, T], Receiver | None],
        write: Callable[[bytes], None],
        on_over: Callable[[], None],
    ) -> None:
        self.write = write
        self.outflow = Outflow(write)
        self.streams: dict[int, Stream] = {}
        self.is_greeted = False  # the other end has acknowledged our settings
        self.leaving_since: float | None = None  # when it was told that there will be an end
        self.is_over = False
        self.idle_since = time.monotonic()
        self._most_streams = most_streams
        self._block_bytes = 2 * metadata_bytes
        self._fields: FieldDecoder[T | None] = FieldDecoder(read, most_bytes=metadata_bytes)
        self._accept = accept
        self._on_over = on_over
        self._reader = FrameReader()
        self._settings_came = False
        self._block: tuple[Frame, bytearray] | None = None  # of a header that goes on
        self._last_stream = 0
        self._takes_no_more = False
        self._leave_reason = ""
        self._window = frames.DEFAULT_WINDOW  # that a stream begins with, as the other end says
        self._unreturned = 0
        self._first = _NO_TABLE  # what the first header that is sent begins with
        self._settings = Budget(_SETTINGS, per_second=_SETTINGS_A_SECOND)
        self._idle_frames = Budget(_IDLE_FRAMES, per_second=_IDLE_FRAMES_A_SECOND)
        self._vain_calls = Budget(_VAIN_CALLS, per_second=_VAIN_CALLS_A_SECOND)
        self._takers: tuple[Callable[[Frame], None], ...] = (
            self._take_data,
            self._take_headers,
            self._take_priority,
            self._take_reset,
            self._take_settings,
            self._take_push,
            self._take_ping,
            self._take_nothing,
            self._take_window,
            self._take_stray,
        )
        write(
            frames.settings({
                frames.MAX_CONCURRENT_STREAMS: most_streams,
                frames.INITIAL_WINDOW_SIZE: WINDOW,
                frames.MAX_HEADER_LIST_SIZE: metadata_bytes,
            })
            + frames.window_update(0, _WINDOW - frames.DEFAULT_WINDOW)
        )  # fmt: skip

    @property
    def is_idle(self) -> bool:
        """Whether it has no calls."""
        return not self.streams

    def receive(self, received: bytes) -> None:
        """Take what came; after the end nothing of it matters."""
        if self.is_over:
            return
        try:
            for frame in self._reader.feed(received):
                self._take(frame)
                if self.is_over:
                    return
        except Http2Error as fault:
            self.end(fault.code, fault.reason)

    def write_header(self, stream: int, block: bytes, *, ends: bool = False) -> None:
        """Send a header, in as many frames as it takes, which may end its stream."""
        block, self._first = self._first + block, b""
        kind, flags = frames.HEADERS, frames.END_STREAM if ends else 0
        while len(block) > frames.LARGEST_FRAME:
            part, block = block[: frames.LARGEST_FRAME], block[frames.LARGEST_FRAME :]
            self.write(frames.frame(kind, part, flags=flags, stream=stream))
            kind, flags = frames.CONTINUATION, 0
        self.write(frames.frame(kind, block, flags=flags | frames.END_HEADERS, stream=stream))

    def ping(self, content: bytes) -> None:
        """Ask the other end, which so shows that it is there; `content` is 8 bytes."""
        self.write(frames.frame(frames.PING, content))

    def leave(self, reason: str) -> None:
        """Say that there will be no more calls here, answer those that are on their way, and end.

        A call that was sent before this was heard is answered: only what answers the ping comes after it.
        """
        if self.leaving_since is None and not self.is_over:
            self.leaving_since, self._leave_reason = time.monotonic(), reason
            self.write(frames.go_away(frames.LARGEST_STREAM, Code.NO_ERROR, reason))
            self.ping(_LAST_ORDERS)

    def end(self, code: Code, reason: str) -> None:
        """End the connection, and all its calls."""
        if not self.is_over:
            self.write(frames.go_away(self._last_stream, code, reason))
            self.lose()

    def lose(self) -> None:
        """Take that the connection has ended."""
        if not self.is_over:
            self.is_over = True
            for stream in list(self.streams.values()):
                stream.close()
            self._on_over()

    def forget(self, stream: Stream) -> None:
        """Count a stream as ended."""
        self.streams.pop(stream.number, None)
        if stream.is_answered:
            self._vain_calls.earn()
            self.outflow.owe_updates()
        if not self.streams:
            self.idle_since = time.monotonic()
            if self._takes_no_more:
                self.lose()

    def _take(self, frame: Frame) -> None:
        if not self._settings_came and frame.kind != frames.SETTINGS:
            raise Http2Error(Code.PROTOCOL_ERROR, "no SETTINGS after the preface")
        if self._block is not None:
            self._take_continuation(frame, *self._block)
        elif frame.kind < len(self._takers):
            self._takers[frame.kind](frame)
        else:
            self._take_nothing(frame)

    def _take_data(self, frame: Frame) -> None:
        size = len(frame.payload)
        self._unreturned += size
        if self._unreturned >= _WINDOW // 2:
            self.write(frames.window_update(0, self._unreturned))
            self._unreturned = 0
        content = frames.unpadded(frame)
        stream = self.streams.get(frame.stream)
        if stream is None:
            self._refuse_unknown(frame)
        elif size:
            stream.receive(content, size)
            self._count_reset(stream)
        if not content and not frame.flags & frames.END_STREAM:
            self._spend_idle()
        if frame.flags & frames.END_STREAM and stream is not None:
            stream.end_request()

    def _take_headers(self, frame: Frame) -> None:
        if not frame.stream % 2:
            raise Http2Error(Code.PROTOCOL_ERROR, f"HEADERS on stream {frame.stream}; expected an odd number")
        content = frames.unpadded(frame)
        if frame.flags & frames.END_HEADERS:
            self._take_block(frame, content)
        else:
            self._block = frame, bytearray(content)

    def _take_continuation(self, frame: Frame, begun: Frame, block: bytearray) -> None:
        if frame.kind != frames.CONTINUATION or frame.stream != begun.stream:
            raise Http2Error(Code.PROTOCOL_ERROR, f"frame of kind {frame.kind} within a header; expected CONTINUATION")
        block += frame.payload
        if len(block) > self._block_bytes:
            raise Http2Error(Code.ENHANCE_YOUR_CALM, f"metadata size exceeds hard limit ({self._block_bytes} encoded)")
        if not frame.payload:
            self._spend_idle()
        if frame.flags & frames.END_HEADERS:
            self._block = None
            self._take_block(begun, bytes(block))

    def _take_block(self, frame: Frame, block: bytes) -> None:
        """Take a whole header, which must be decoded whatever becomes of it: the next ones build on it."""
        request = self._fields.decode(block)
        stream = self.streams.get(frame.stream)
        if stream is not None:  # after its data, which gRPC has no use for
            if not frame.flags & frames.END_STREAM:
                raise Http2Error(Code.PROTOCOL_ERROR, f"HEADERS on stream {frame.stream} again; expected its end")
            self._spend_idle()
            stream.end_request()
        elif frame.stream <= self._last_stream:
            if request is not None:
                raise Http2Error(Code.PROTOCOL_ERROR, f"request on stream {frame.stream}, after {self._last_stream}")
            self._spend_idle()  # after the data of a stream that has ended here
        elif not self._takes_no_more:
            self._begin(frame, request)

    def _begin(self, frame: Frame, request: T | None) -> None:
        self._last_stream = frame.stream
        if len(self.streams) >= self._most_streams:
            self.write(frames.rst_stream(frame.stream, Code.REFUSED_STREAM))
            self._spend_call()
            return
        stream = self.streams[frame.stream] = Stream(frame.stream, self, window=self._window)
        if request is None:
            stream.reset(Code.PROTOCOL_ERROR)
            self._spend_call()
            return
        stream.receiver = self._accept(stream, request)
        if frame.flags & frames.END_STREAM:
            stream.end_request()

    def _take_reset(self, frame: Frame) -> None:
        frames.read_number(frame)
        stream = self.streams.get(frame.stream)
        if stream is None:
            self._refuse_unknown(frame)
        else:
            stream.close()
        self._spend_call()

    def _take_settings(self, frame: Frame) -> None:
        _refuse_on_stream(frame)
        if frame.flags & frames.ACK:
            self.is_greeted = True
            self._spend_idle()
            return
        if not self._settings.spend():
            raise Http2Error(Code.ENHANCE_YOUR_CALM, "too many settings")
        window = _read_window(frame, self._window)
        self._settings_came = True
        # What they allow is made use of only after this, or the other end couldn't tell.
        self.write(frames.frame(frames.SETTINGS, flags=frames.ACK))
        if window != self._window:
            self._widen_all(window)

    def _widen_all(self, window: int) -> None:
        """Let all streams' windows follow what they begin with."""
        more, self._window = window - self._window, window
        for stream in list(self.streams.values()):
            if stream.is_open:  # it may have ended as another's window let it
                self.outflow.widen(more, stream)

    def _take_window(self, frame: Frame) -> None:
        size = frames.read_number(frame)
        if not self.outflow.owes_update():
            self._spend_idle()
        if not frame.stream:
            if not size:
                raise Http2Error(Code.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self.outflow.widen(size)
            return
        stream = self.streams.get(frame.stream)
        if stream is None:
            self._refuse_unknown(frame)
        elif not size:
            stream.reset(Code.PROTOCOL_ERROR)
            self._count_reset(stream)
        else:
            self._widen(stream, size)
            self._count_reset(stream)

    def _widen(self, stream: Stream, size: int) -> None:
        """Let a stream send more; more than there can be ends it."""
        try:
            self.outflow.widen(size, stream)
        except Http2Error as error:
            stream.reset(error.code)

    def _take_ping(self, frame: Frame) -> None:
        self._spend_idle()
        _refuse_on_stream(frame)
        if len(frame.payload) != len(_LAST_ORDERS):
            raise Http2Error(Code.FRAME_SIZE_ERROR, f"PING of {len(frame.payload)} bytes; expected 8")
        if not frame.flags & frames.ACK:
            self.write(frames.frame(frames.PING, frame.payload, flags=frames.ACK))
        elif frame.payload == _LAST_ORDERS and self.leaving_since is not None:
            self._take_no_more()

    def _take_no_more(self) -> None:
        """Say which call was the last, and end once all are answered."""
        self._takes_no_more = True
        self.write(frames.go_away(self._last_stream, Code.NO_ERROR, self._leave_reason))
        if not self.streams:
            self.lose()

    def _take_priority(self, _: Frame) -> None:
        self._spend_idle()

    def _take_nothing(self, _: Frame) -> None:
        """Pass over a frame that says nothing to a server: GOAWAY, and kinds to come."""
        self._spend_idle()

    def _take_push(self, _: Frame) -> None:
        raise Http2Error(Code.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _take_stray(self, _: Frame) -> None:
        raise Http2Error(Code.PROTOCOL_ERROR, "CONTINUATION of no header")

    def _refuse_unknown(self, frame: Frame) -> None:
        """Raise Http2Error for a frame of a stream that never was.

        What comes late for one that has ended passes, and so does what belongs to a call that came after the last.
        """
        if not frame.stream or (frame.stream > self._last_stream and not self._takes_no_more):
            raise Http2Error(
                Code.PROTOCOL_ERROR, f"frame of kind {frame.kind} on stream {frame.stream}, which isn't open"
            )

    def _count_reset(self, stream: Stream) -> None:
        """Count a stream that was ended for what was sent on it as a call in vain."""
        if not stream.is_open and not stream.is_answered:
            self._spend_call()

    def _spend_idle(self) -> None:
        if not self._idle_frames.spend():
            raise Http2Error(Code.ENHANCE_YOUR_CALM, "too many frames that carry nothing")

    def _spend_call(self) -> None:
        if not self._vain_calls.spend():
            raise Http2Error(Code.ENHANCE_YOUR_CALM, "too many calls that were taken back")


def _read_window(frame: Frame, window: int) -> int:
    """Return what of settings matters here, the window that a stream begins with; raises Http2Error for wrong ones."""
    for setting, value in frames.read_settings(frame):
        if setting == frames.INITIAL_WINDOW_SIZE:
            window = value
            if value > frames.LARGEST_WINDOW:
                raise Http2Error(Code.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE: {value}; expected 2^31 - 1 at most")
        elif setting == frames.ENABLE_PUSH and value > 1:
            raise Http2Error(Code.PROTOCOL_ERROR, f"ENABLE_PUSH: {value}; expected 0 or 1")
        elif setting == frames.MAX_FRAME_SIZE and not frames.LARGEST_FRAME <= value < 2**24:
            raise Http2Error(Code.PROTOCOL_ERROR, f"MAX_FRAME_SIZE: {value}; expected 2^14 to 2^24 - 1")
    return window


def _refuse_on_stream(frame: Frame) -> None:
    if frame.stream:
        raise Http2Error(Code.PROTOCOL_ERROR, f"frame of kind {frame.kind} on stream {frame.stream}; expected on none")
