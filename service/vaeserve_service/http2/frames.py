"""HTTP/2's frames. Source: RFC 9113, sections 4, 6 and 7."""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITIZED = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

# What both ends take at least, in bytes; we say no other size, and send no larger ones.
LARGEST_FRAME = 16_384
LARGEST_WINDOW = 2**31 - 1
LARGEST_STREAM = 2**31 - 1
DEFAULT_WINDOW = 65_535

_HEAD = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_NUMBER = struct.Struct(">I")


class Code(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class Http2Error(Exception):
    """What the other end did that ends the connection."""

    def __init__(self, code: Code, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Frame(NamedTuple):
    """A frame: its kind, its flags, the number of its stream, 0 for the connection's own, and what it holds."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """Return a frame's bytes."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    """Return the frame of these settings."""
    return frame(SETTINGS, b"".join(_SETTING.pack(*each) for each in values.items()))


def rst_stream(stream: int, code: Code) -> bytes:
    """Return the frame that ends a stream."""
    return frame(RST_STREAM, _NUMBER.pack(code), stream=stream)


def window_update(stream: int, size: int) -> bytes:
    """Return the frame that lets the other end send `size` bytes more, on a stream or, for 0, in all."""
    return frame(WINDOW_UPDATE, _NUMBER.pack(size), stream=stream)


def go_away(last_stream: int, code: Code, reason: str) -> bytes:
    """Return the frame that ends a connection after the call of the stream `last_stream`."""
    return frame(GOAWAY, _NUMBER.pack(last_stream) + _NUMBER.pack(code) + reason.encode())


def data_frames(stream: int, content: bytes) -> bytes:
    """Return the frames of data of any size."""
    if len(content) <= LARGEST_FRAME:
        return frame(DATA, content, stream=stream)
    parts = range(0, len(content), LARGEST_FRAME)
    return b"".join(frame(DATA, content[start : start + LARGEST_FRAME], stream=stream) for start in parts)


def read_number(frame: Frame) -> int:
    """Return the one number of 31 bits that a frame holds; raises Http2Error for a frame of another size."""
    if len(frame.payload) != _NUMBER.size:
        raise Http2Error(
            Code.FRAME_SIZE_ERROR, f"{len(frame.payload)} bytes in a frame of kind {frame.kind}; expected 4"
        )
    number: int = _NUMBER.unpack(frame.payload)[0]
    return number & LARGEST_STREAM


def read_settings(frame: Frame) -> Iterator[tuple[int, int]]:
    """Yield the settings that a frame holds; raises Http2Error for half of one."""
    if len(frame.payload) % _SETTING.size:
        raise Http2Error(Code.FRAME_SIZE_ERROR, f"SETTINGS of {len(frame.payload)} bytes; expected 6 for each")
    yield from _SETTING.iter_unpack(frame.payload)


def unpadded(frame: Frame) -> bytes:
    """Return what a frame of DATA or HEADERS holds without its padding and priority; raises Http2Error for too much."""
    content = frame.payload
    padding = 0
    if frame.flags & PADDED:
        padding, content = content[0] if content else 1, content[1:]
    if frame.kind == HEADERS and frame.flags & PRIORITIZED:
        content, cut = content[5:], len(content) < 5
        if cut:
            raise Http2Error(Code.FRAME_SIZE_ERROR, "HEADERS end within their priority")
    if padding > len(content):
        raise Http2Error(Code.PROTOCOL_ERROR, "more padding than there is")
    return content[: len(content) - padding]


class FrameReader:
    """Cuts what comes into frames."""

    def __init__(self) -> None:
        self._rest = b""
        self._greeted = False

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Yield the frames that are whole; raises Http2Error for another preface, and for a frame that is too large."""
        if self._rest:
            received = self._rest + received
        at, end = 0, len(received)
        try:
            if not self._greeted:
                at = self._read_preface(received)
            while self._greeted and end - at >= _HEAD.size:
                high, low, kind, flags, stream = _HEAD.unpack_from(received, at)
                size = high << 8 | low
                if size > LARGEST_FRAME:
                    raise Http2Error(Code.FRAME_SIZE_ERROR, f"frame of {size} bytes; expected {LARGEST_FRAME} at most")
                start = at + _HEAD.size
                if start + size > end:
                    break
                at = start + size
                yield Frame(kind, flags, stream & LARGEST_STREAM, received[start:at])
        finally:
            self._rest = received[at:]

    def _read_preface(self, received: bytes) -> int:
        """Return where the first frame begins, once the preface is there."""
        if not PREFACE.startswith(received[: len(PREFACE)]):
            raise Http2Error(Code.PROTOCOL_ERROR, "no HTTP/2 preface")
        self._greeted = len(received) >= len(PREFACE)
        return len(PREFACE) if self._greeted else 0
