"""HTTP/2 written by hand, for clients that keep its rules no further than a test wants."""

import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from threading import Thread
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS = 0x4, 0x3
CANCEL = 8
# Bytes of a frame's head, and of what it holds at most unless the other end says more.
HEAD, LARGEST_FRAME = 9, 16_384

SCORE = "/vaeserve.v1.VaeService/Score"
CHECK = "/grpc.health.v1.Health/Check"


class Frame(NamedTuple):
    """A frame as it came."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """Return a frame's bytes."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """Return a SETTINGS frame: `settings(initial_window_size=0)`."""
    numbers = {"max_concurrent_streams": MAX_CONCURRENT_STREAMS, "initial_window_size": INITIAL_WINDOW_SIZE}
    return frame(SETTINGS, b"".join(struct.pack(">HI", numbers[name], value) for name, value in values.items()))


def rst_stream(stream: int) -> bytes:
    """Return a frame that cancels a stream."""
    return frame(RST_STREAM, struct.pack(">I", CANCEL), stream=stream)


def window_update(stream: int, size: int) -> bytes:
    """Return a frame that lets the other end send `size` bytes more."""
    return frame(WINDOW_UPDATE, struct.pack(">I", size), stream=stream)


def hpack(fields: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Return a block of header fields, each a literal that is neither compressed nor remembered (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _string(name.encode()) + _string(_bytes(value)) for name, value in fields)


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _string(text: bytes) -> bytes:
    """Return a length in a prefix of 7 bits, and the text."""
    length = len(text)
    if length < 127:
        return bytes([length]) + text
    coded, length = bytearray([127]), length - 127
    while length >= 128:
        coded.append(length % 128 + 128)
        length //= 128
    return bytes(coded) + bytes([length]) + text


def call_fields(path: str, **changes: str | bytes | None) -> list[tuple[str, str | bytes]]:
    """Return a call's header fields; `changes` by name with `_` for `-`, None to leave one out."""
    fields: dict[str, str | bytes | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    fields |= {name.replace("_", "-"): value for name, value in changes.items()}
    return [(name, value) for name, value in fields.items() if value is not None]


def headers(stream: int, path: str = CHECK, *, flags: int = END_HEADERS, **changes: str | bytes | None) -> bytes:
    """Return the HEADERS frame that begins a call."""
    return frame(HEADERS, hpack(call_fields(path, **changes)), flags=flags, stream=stream)


def message(content: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """Return gRPC's message: a flag, a length, the content."""
    return struct.pack(">BI", compressed, len(content) if length is None else length) + content


def data(stream: int, payload: bytes, *, flags: int = END_STREAM) -> bytes:
    """Return a DATA frame."""
    return frame(DATA, payload, flags=flags, stream=stream)


class RawConnection:
    """A connection to a gRPC port that sends what it is told to; closes its socket as a context manager."""

    def __init__(self, target: str, *, greeting: bytes = PREFACE + settings(), timeout: float = 20.0) -> None:
        host, _, port = target.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout)
        self._unread, self._at = b"", 0
        self.socket.sendall(greeting)

    def __enter__(self) -> "RawConnection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def greet(self) -> Frame:
        """Acknowledge the other end's settings once they are there, and return them."""
        theirs = next(sent for sent in self.frames() if sent.kind == SETTINGS)
        self.socket.sendall(frame(SETTINGS, flags=ACK))
        return theirs

    def send(self, content: bytes) -> bool:
        """Send; tell whether the other end still took it."""
        try:
            self.socket.sendall(content)
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def flood(self, content: Iterable[bytes]) -> Counter[int]:
        """Send while reading what comes, until all of it is dealt with or the other end closes.

        Returns how many frames of each kind came.
        """
        came: Counter[int] = Counter()
        sender = Thread(target=lambda: all(map(self.send, chain(content, [frame(PING, b"the last")]))))
        sender.start()
        for answer in self.frames():
            came[answer.kind] += 1
            if (answer.kind, answer.payload) == (PING, b"the last"):
                break
        sender.join()
        return came

    def frames(self) -> Iterator[Frame]:
        """Yield frames until the other end closes; raises TimeoutError where it says nothing."""
        while (head := self._read(9)) is not None:
            payload = self._read(int.from_bytes(head[:3], "big"))
            if payload is None:
                return
            yield Frame(head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, payload)

    def _read(self, size: int) -> bytes | None:
        while len(self._unread) - self._at < size:
            try:
                more = self.socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self._unread, self._at = self._unread[self._at :] + more, 0
        self._at += size
        return self._unread[self._at - size : self._at]
