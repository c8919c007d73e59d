"""gRPC's messages, in whatever parts and however compressed, and the fields that end an answer."""

import gzip
import zlib
from base64 import b64decode
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import pytest
from grpc import StatusCode
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from tests.service.frames import message
from tests.service.http2.ends import split
from vaeserve_service.http2.messages import HEADER, OK, MessageError, Messages, framed, only_trailer, trailer
from vaeserve_service.transport import Status

COMPRESS: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}
MOST = 1000


def read(received: bytes, *, encoding: str = "identity", most_bytes: int = MOST) -> list[bytes]:
    """Return the messages of some data."""
    return list(Messages(encoding=encoding, most_bytes=most_bytes).feed(received))


def fields(block: bytes) -> list[tuple[str, str]]:
    """Return the fields of a block as another decoder reads them."""
    return [(str(name), str(value)) for name, value in Decoder().decode(block)]


def raised(received: bytes, **options: Any) -> Status:
    """Return the status that some data ends its call with."""
    with pytest.raises(MessageError) as raised:
        read(received, **options)
    return raised.value.status


@given(
    st.lists(st.tuples(st.binary(max_size=200), st.booleans()), max_size=6),
    st.sampled_from(["gzip", "deflate"]),
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
)
def test_messages_are_read_from_whatever_parts_they_come_in(
    sent: list[tuple[bytes, bool]], encoding: str, sizes: list[int]
) -> None:
    """Any messages come whole and in order, compressed or not, and after the last none has begun."""
    compress = COMPRESS[encoding]
    data = b"".join(message(compress(each), compressed=1) if small else message(each) for each, small in sent)
    messages = Messages(encoding=encoding, most_bytes=MOST)
    came = [each for part in split(data, sizes) for each in messages.feed(part)]
    assert came == [each for each, _ in sent]
    assert all(type(each) is bytes for each in came)
    assert not messages.is_within


@given(st.integers(0, 20))
def test_a_message_comes_with_its_last_byte(size: int) -> None:
    """It is within until then, also within its prefix, and is given out at once."""
    messages = Messages(encoding="identity", most_bytes=MOST)
    data = message(bytes(size))
    for byte in split(data[:-1], [1]):
        assert list(messages.feed(byte)) == []
        assert messages.is_within
    assert list(messages.feed(data[-1:])) == [bytes(size)]
    assert not messages.is_within


def test_what_follows_a_message_is_kept() -> None:
    """Data that ends within the second message gives the first out, and the second when it is whole."""
    messages = Messages(encoding="identity", most_bytes=MOST)
    data = message(b"first") + message(b"second")
    assert list(messages.feed(data[:-1])) == [b"first"]
    assert messages.is_within
    assert list(messages.feed(data[-1:])) == [b"second"]


@given(st.binary(max_size=100))
def test_what_we_send_is_read(content: bytes) -> None:
    """Our messages are as clients make theirs."""
    assert framed(content) == message(content)
    assert read(framed(content)) == [content]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_the_largest_message_is_read_and_one_byte_more_is_not(encoding: str) -> None:
    """The limit is of what a message is once it is inflated, and a larger one is told both numbers."""
    assert read(message(bytes(MOST))) == [bytes(MOST)]
    status = raised(message(b"", length=MOST + 1))
    assert status.code == StatusCode.RESOURCE_EXHAUSTED
    assert status.message == "SERVER: Received message larger than max (1001 vs. 1000)"
    compress = COMPRESS[encoding]
    assert read(message(compress(bytes(MOST)), compressed=1), encoding=encoding) == [bytes(MOST)]
    assert raised(message(compress(bytes(MOST + 1)), compressed=1), encoding=encoding) == status


def test_a_message_that_is_too_large_is_refused_by_its_prefix() -> None:
    """Nothing of what it would hold need come, nor is it hidden behind another or by coming in parts."""
    prefix = message(b"", length=2**32 - 1)
    assert raised(prefix).code == StatusCode.RESOURCE_EXHAUSTED
    assert raised(message(b"first") + prefix).code == StatusCode.RESOURCE_EXHAUSTED
    messages = Messages(encoding="identity", most_bytes=MOST)
    assert [each for byte in split(prefix[:-1], [1]) for each in messages.feed(byte)] == []
    with pytest.raises(MessageError, match="larger"):
        list(messages.feed(prefix[-1:]))


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_not_inflated(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 MiB in 64 KiB no more is inflated than shows that it is too much."""
    bomb = COMPRESS[encoding](bytes(2**26))
    inflated: list[int] = []

    class Counting:
        def __init__(self, bits: int) -> None:
            self._inflater = inflater(bits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inflater, name)

        def decompress(self, content: bytes, most: int = 0) -> bytes:
            out: bytes = self._inflater.decompress(content, most)
            inflated.append(len(out))
            return out

    inflater: Any = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    status = raised(message(bomb, compressed=1), encoding=encoding, most_bytes=2**17)
    assert status.code == StatusCode.RESOURCE_EXHAUSTED
    assert sum(inflated) == 2**17 + 1


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_compressed_data_that_is_cut_off_is_refused(encoding: str, cut: int) -> None:
    """What ends too early is no message, not even one of nothing."""
    status = raised(message(COMPRESS[encoding](b"content" * 10)[:cut], compressed=1), encoding=encoding)
    assert status.code == StatusCode.INTERNAL
    assert "Decompression failed" in status.message


@pytest.mark.parametrize(("encoding", "other"), [("gzip", "deflate"), ("deflate", "gzip")])
def test_data_of_another_encoding_is_refused(encoding: str, other: str) -> None:
    """A message is compressed as its call says, or it can't be read."""
    status = raised(message(COMPRESS[other](b"content"), compressed=1), encoding=encoding)
    assert status.code == StatusCode.INTERNAL
    assert "Decompression failed" in status.message


@pytest.mark.parametrize(("encoding", "flag"), [("identity", 1), ("identity", 2), ("gzip", 2), ("deflate", 255)])
def test_a_flag_without_a_meaning_is_refused(encoding: str, flag: int) -> None:
    """Compressed is 0, or 1 where the call says how; the message tells what it was."""
    status = raised(message(gzip.compress(b"content"), compressed=flag), encoding=encoding)
    assert status.code == StatusCode.INTERNAL
    assert f"compressed is {flag}" in status.message


@given(st.lists(st.binary(max_size=40), max_size=5), st.sampled_from(["identity", "gzip", "deflate"]))
def test_garbage_raises_nothing_else(received: list[bytes], encoding: str) -> None:
    """Whatever bytes come are messages, a part of one, or end their call."""
    messages = Messages(encoding=encoding, most_bytes=MOST)
    with suppress(MessageError):
        for each in received:
            assert all(len(content) <= MOST for content in messages.feed(each))


def test_an_answer_begins_and_ends_as_clients_expect() -> None:
    """Its header says what it is and what may be sent to us, and its trailer that all went well."""
    assert fields(HEADER) == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-accept-encoding", "identity,gzip,deflate"),
    ]
    assert fields(OK) == [("grpc-status", "0")]


def test_an_answer_that_is_only_an_end_has_all_in_one() -> None:
    """Where there is no message the fields of both are one block."""
    assert fields(only_trailer(Status(StatusCode.NOT_FOUND, "model: none"))) == [
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("grpc-status", "5"),
        ("grpc-message", "model: none"),
    ]


@given(st.text(min_size=1, max_size=60))
def test_any_message_is_printable_on_the_wire(text: str) -> None:
    """What isn't printable ASCII is written as gRPC's percent signs say, and read back as it was."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    ((_, code), (_, said)) = fields(trailer(Status(StatusCode.INTERNAL, text)))
    assert code == "13"
    assert said.isascii()
    assert said.isprintable()
    assert unquote(said) == text


def test_printable_messages_are_sent_as_they_are() -> None:
    """Nothing but the percent sign itself is escaped of what can be read."""
    text = "".join(map(chr, range(0x20, 0x7F)))
    assert fields(trailer(Status(StatusCode.INTERNAL, text)))[1] == ("grpc-message", text.replace("%", "%25"))


def test_trailers_follow_the_status_and_bytes_are_written_in_letters() -> None:
    """Further fields come in their order; those in -bin as base64 without padding."""
    status = Status(
        StatusCode.OK, trailers=(("a", "text"), ("b", b"bytes"), ("c-bin", b"\0\xff\0\xff"), ("d-bin", "t"))
    )
    said = fields(trailer(status))
    assert said[:3] == [("grpc-status", "0"), ("a", "text"), ("b", "bytes")]
    assert [name for name, _ in said[3:]] == ["c-bin", "d-bin"]
    assert [b64decode(value + "==") for _, value in said[3:]] == [b"\0\xff\0\xff", b"t"]
    assert not any("=" in value for _, value in said[3:])
