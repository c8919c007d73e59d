"""gRPC's messages in a stream's data, and its status in the fields after it.

Source: "gRPC over HTTP2" (PROTOCOL-HTTP2.md of the grpc project).
"""

import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

from grpc import StatusCode

from vaeserve_service.http2.fields import Fields, block
from vaeserve_service.transport import Status

# What window bits tell zlib of each encoding: gzip's header, or zlib's own.
ENCODINGS = {"identity": None, "gzip": 31, "deflate": 15}

_PREFIX = struct.Struct(">BI")
_HTTP_OK = (b":status", b"200"), (b"content-type", b"application/grpc")
# What a message may be made of as it is: printable ASCII but the sign that others are written with.
_PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")

HEADER = block((*_HTTP_OK, (b"grpc-accept-encoding", ",".join(ENCODINGS).encode())))


class MessageError(Exception):
    """What is wrong with a message, as the status that its call ends with."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.message)
        self.status = status


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
    """Cuts data into messages, of at most `most_bytes` each, compressed or not."""

    def __init__(self, *, encoding: str, most_bytes: int) -> None:
        self._encoding = encoding
        self._most = most_bytes
        self._rest = bytearray()

    @property
    def is_within(self) -> bool:
        """Whether a message has begun that isn't whole."""
        return bool(self._rest)

    def feed(self, received: bytes) -> Iterator[bytes]:
        """Yield the messages that are whole; raises MessageError for one that is too large or can't be read."""
        if not self._rest and len(received) >= _PREFIX.size:  # one message a frame is the rule, and needs no copy
            compressed, size = self._read_prefix(received)
            if len(received) == _PREFIX.size + size:
                yield self._content(compressed, received[_PREFIX.size :])
                return
        self._rest += received
        while len(self._rest) >= _PREFIX.size:
            compressed, size = self._read_prefix(self._rest)
            end = _PREFIX.size + size
            if len(self._rest) < end:
                return
            content = bytes(self._rest[_PREFIX.size : end])
            del self._rest[:end]
            yield self._content(compressed, content)

    def _read_prefix(self, content: bytes | bytearray) -> tuple[int, int]:
        compressed, size = _PREFIX.unpack_from(content)
        if size > self._most:
            raise _too_large(size, self._most)
        return compressed, size

    def _content(self, compressed: int, content: bytes) -> bytes:
        if not compressed:
            return content
        bits = ENCODINGS[self._encoding]
        if compressed > 1 or bits is None:
            raise _broken(f"message: compressed is {compressed}: Compression bit set but no encoding is")
        inflater = zlib.decompressobj(bits)
        try:
            inflated = inflater.decompress(content, self._most + 1)
        except zlib.error as error:
            raise _broken(f"message: Decompression failed: {error}") from None
        if len(inflated) > self._most:
            raise _too_large(len(inflated), self._most)
        if not inflater.eof:
            raise _broken("message: Decompression failed: it ends too early")
        return inflated


def _too_large(size: int, most: int) -> MessageError:
    # In gRPC's own words, which clients know.
    return MessageError(
        Status(StatusCode.RESOURCE_EXHAUSTED, f"SERVER: Received message larger than max ({size} vs. {most})")
    )


def _broken(message: str) -> MessageError:
    return MessageError(Status(StatusCode.INTERNAL, message))
