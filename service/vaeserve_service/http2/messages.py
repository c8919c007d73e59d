"""gRPC's messages in a stream's data, and its status in the fields after it.

Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of the grpc project).
"""

import struct
import zlib
from base64 import b64encode
from urllib.parse import quote_from_bytes

from grpc import StatusCode

from vaeserve_service.http2.fields import Fields, block
from vaeserve_service.transport import Status, StatusError

# What window bits tell zlib of each encoding: gzip's header, or zlib's own.
ENCODINGS = {"identity": None, "gzip": 31, "deflate": 15}

_PREFIX = struct.Struct(">BI")
_HTTP_OK = (b":status", b"200"), (b"content-type", b"application/grpc")
# What a message may be made of as it is: printable ASCII but the sign that others are written with.
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

HEADER = block((*_HTTP_OK, (b"grpc-accept-encoding", ",".join(ENCODINGS).encode())))


def framed(content: bytes) -> bytes:
    """Return a message as it is sent: not compressed, of so many bytes, and these."""
    return _PREFIX.pack(0, len(content)) + content


def trailer(status: Status) -> bytes:
    """Return the fields that end an answer."""
    return block(_fields(status))


def only_trailer(status: Status) -> bytes:
    """Return the fields of an answer that is no more than its end."""
    return block((*_HTTP_OK, *_fields(status)))


def _fields(status: Status) -> Fields:
    fields = [(b"grpc-status", str(status.code.value[0]).encode())]
    if status.message:
        fields.append((b"grpc-message", quote_from_bytes(status.message.encode(), safe=_PLAIN).encode()))
    return fields + [(name.encode(), _value(name, value)) for name, value in status.trailers]


def _value(name: str, value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return b64encode(content).rstrip(b"=") if name.endswith("-bin") else content


# How nearly every call ends.
OK = trailer(Status(StatusCode.OK))


class Messages:
    """Cuts data into messages, of at most `most_bytes` each, as they are asked for."""

    def __init__(self, *, most_bytes: int) -> None:
        self._most = most_bytes
        self._data: bytes | bytearray = b""
        self._end = 0  # of the first message, once it is known; else 0

    def __len__(self) -> int:
        """How many bytes there are."""
        return len(self._data)

    @property
    def is_whole(self) -> bool:
        """Whether there is a message to take."""
        return 0 < self._end <= len(self._data)

    @property
    def has_more(self) -> bool:
        """Whether there is more than one message."""
        return 0 < self._end < len(self._data)

    def feed(self, received: bytes) -> None:
        """Take data; raises StatusError for a first message that is too large."""
        if not self._data:  # one message a frame is the rule, and needs no copy
            self._data = received
        elif isinstance(self._data, bytearray):
            self._data += received
        else:
            self._data = bytearray(self._data) + received
        self._look()

    def take(self) -> tuple[int, bytes]:
        """Take the first message: whether it is compressed, and what was sent of it.

        Raises StatusError where the next one is too large.
        """
        compressed, end = self._data[0], self._end
        with memoryview(self._data) as data:
            content = bytes(data[_PREFIX.size : end])
        if end == len(self._data):
            self._data = b""
        else:
            if not isinstance(self._data, bytearray):
                self._data = bytearray(self._data)
            del self._data[:end]
        self._end = 0
        self._look()
        return compressed, content

    def _look(self) -> None:
        """Find the end of the first message."""
        if not self._end and len(self._data) >= _PREFIX.size:
            size: int = _PREFIX.unpack_from(self._data)[1]
            if size > self._most:
                raise _too_large(size, self._most)
            self._end = _PREFIX.size + size


def inflated(content: bytes, *, compressed: int, encoding: str, most_bytes: int) -> bytes:
    """Return what a compressed message says; raises StatusError for one that is too large or can't be read."""
    bits = ENCODINGS[encoding]
    if compressed > 1:
        raise _broken(f"message: its flag is {compressed}; expected 0 or 1")
    if bits is None:
        raise _broken("message: Compression bit set but no encoding is")
    inflater = zlib.decompressobj(bits)
    try:
        whole = inflater.decompress(content, most_bytes + 1)
    except zlib.error as error:
        raise _broken(f"message: Decompression failed: {error}") from None
    if len(whole) > most_bytes:
        raise _too_large(len(whole), most_bytes)
    if not inflater.eof:
        raise _broken("message: Decompression failed: it ends too early")
    return whole


def _too_large(size: int, most: int) -> StatusError:
    # In gRPC's own words, which clients know.
    return StatusError(
        Status(StatusCode.RESOURCE_EXHAUSTED, f"SERVER: Received message larger than max ({size} vs. {most})")
    )


def _broken(message: str) -> StatusError:
    return StatusError(Status(StatusCode.INTERNAL, message))
