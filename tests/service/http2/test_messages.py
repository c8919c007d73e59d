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
from vaeserve_service.http2.messages import HEADER, OK, Messages, framed, inflated, only_trailer, trailer
from vaeserve_service.transport import Status, StatusError

COMPRESS: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress}
ENCODINGS = sorted(COMPRESS)
MOST = 1000
TOO_LARGE = Status(StatusCode.RESOURCE_EXHAUSTED, "SERVER: Received message larger than max (1001 vs. 1000)")


def whole(messages: Messages) -> list[tuple[int, bytes]]:
    """Take the messages that are whole."""
    taken = []
    while messages.is_whole:
        taken.append(messages.take())
    return taken


def read(received: bytes) -> list[tuple[int, bytes]]:
    """Return the messages of some data, whether each is compressed, and what was sent of it."""
    messages = Messages(most_bytes=MOST)
    messages.feed(received)
    return whole(messages)


def inflate(content: bytes, *, encoding: str, compressed: int = 1, most_bytes: int = MOST) -> bytes:
    """Return what a compressed message says."""
    return inflated(content, compressed=compressed, encoding=encoding, most_bytes=most_bytes)


def refused(content: bytes, **options: Any) -> Status:
    """Return the status that a compressed message ends its call with."""
    with pytest.raises(StatusError) as raised:
        inflate(content, **options)
    return raised.value.status


def fields(block: bytes) -> list[tuple[str, str]]:
    """Return the fields of a block as another decoder reads them."""
    return [(str(name), str(value)) for name, value in Decoder().decode(block)]


SENT = st.lists(st.tuples(st.sampled_from([0, 0, 1, 2, 255]), st.binary(max_size=200)), max_size=6)


@given(SENT, st.lists(st.integers(0, 300), min_size=1, max_size=5).filter(any), st.booleans())
def test_messages_are_taken_from_whatever_parts_they_come_in(
    sent: list[tuple[int, bytes]], sizes: list[int], prompt: bool
) -> None:
    """Any messages come as they were sent and in order, whether they are taken at once or in the end."""
    data = b"".join(message(content, compressed=flag) for flag, content in sent)
    messages, taken, fed = Messages(most_bytes=MOST), [], 0
    for part in split(data, sizes):
        messages.feed(part)
        fed += len(part)
        if prompt:
            taken += whole(messages)
        assert len(messages) == fed - sum(len(message(content)) for _, content in taken)
    taken += whole(messages)
    assert taken == sent
    assert all(type(content) is bytes for _, content in taken)
    assert len(messages) == 0
    assert not messages.is_whole
    assert not messages.has_more


@given(SENT)
def test_a_message_in_each_part_is_taken_from_it(sent: list[tuple[int, bytes]]) -> None:
    """Where each part is one message there is never more than one, and nothing is left after it."""
    messages = Messages(most_bytes=MOST)
    for flag, content in sent:
        messages.feed(message(content, compressed=flag))
        assert messages.is_whole
        assert not messages.has_more
        assert messages.take() == (flag, content)
        assert len(messages) == 0


@given(st.integers(0, 20))
def test_a_message_comes_with_its_last_byte(size: int) -> None:
    """It is whole then and not before, and the first byte of another shows that there is more."""
    messages = Messages(most_bytes=MOST)
    data = message(bytes(size))
    for at, byte in enumerate(split(data[:-1], [1]), start=1):
        messages.feed(byte)
        assert not messages.is_whole
        assert len(messages) == at
    messages.feed(data[-1:])
    assert messages.is_whole
    assert not messages.has_more
    messages.feed(b"\0")
    assert messages.has_more
    assert messages.take() == (0, bytes(size))
    assert len(messages) == 1


def test_what_follows_a_message_is_kept() -> None:
    """Data that ends within the second message has the first, and the second when it is whole."""
    messages = Messages(most_bytes=MOST)
    data = message(b"first") + message(b"second")
    messages.feed(data[:-1])
    assert whole(messages) == [(0, b"first")]
    messages.feed(data[-1:])
    assert whole(messages) == [(0, b"second")]


@given(st.binary(max_size=100))
def test_what_we_send_is_read(content: bytes) -> None:
    """Our messages are as clients make theirs."""
    assert framed(content) == message(content)
    assert read(framed(content)) == [(0, content)]


def test_the_largest_message_is_taken_and_one_byte_more_is_not() -> None:
    """Who sends a larger one is told both numbers."""
    assert read(message(bytes(MOST))) == [(0, bytes(MOST))]
    with pytest.raises(StatusError) as raised:
        read(message(b"", length=MOST + 1))
    assert raised.value.status == TOO_LARGE


@pytest.mark.parametrize("prefix", [message(b"", length=MOST + 1), message(b"", length=2**32 - 1, compressed=1)])
def test_a_message_that_is_too_large_is_refused_by_its_prefix(prefix: bytes) -> None:
    """Nothing of what it would hold need come, and nothing more is taken of it."""
    messages = Messages(most_bytes=MOST)
    for byte in split(prefix[:-1], [1]):
        messages.feed(byte)
    for more in (prefix[-1:], b"", b"content"):
        with pytest.raises(StatusError, match="larger"):
            messages.feed(more)
        assert not messages.is_whole


@pytest.mark.parametrize("cut", [0, 1, 4, 5])
def test_a_message_that_is_too_large_is_found_behind_another(cut: int) -> None:
    """It is refused as the one before it is taken or once its prefix is there, whichever is later."""
    messages, prefix = Messages(most_bytes=MOST), message(b"", length=MOST + 1)
    messages.feed(message(b"first") + prefix[:cut])
    assert messages.is_whole
    if cut == 5:
        with pytest.raises(StatusError, match="larger"):
            messages.take()
    else:
        assert messages.take() == (0, b"first")
        with pytest.raises(StatusError, match="larger"):
            messages.feed(prefix[cut:])
    assert not messages.is_whole


@given(st.binary(max_size=MOST), st.sampled_from(ENCODINGS))
def test_compressed_messages_are_inflated(content: bytes, encoding: str) -> None:
    """Of either encoding, up to the limit of what a message is once it is inflated."""
    assert inflate(COMPRESS[encoding](content), encoding=encoding) == content


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_largest_message_is_inflated_and_one_byte_more_is_not(encoding: str) -> None:
    """A small message that says too much ends as a large one does."""
    compress = COMPRESS[encoding]
    assert inflate(compress(bytes(MOST)), encoding=encoding) == bytes(MOST)
    assert refused(compress(bytes(MOST + 1)), encoding=encoding) == TOO_LARGE


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_bomb_is_not_inflated(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 MiB in 64 KiB no more is inflated than shows that it is too much."""
    bomb = COMPRESS[encoding](bytes(2**26))
    sizes: list[int] = []

    class Counting:
        def __init__(self, bits: int) -> None:
            self._inflater = inflater(bits)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inflater, name)

        def decompress(self, content: bytes, most: int = 0) -> bytes:
            out: bytes = self._inflater.decompress(content, most)
            sizes.append(len(out))
            return out

    inflater: Any = zlib.decompressobj
    monkeypatch.setattr(zlib, "decompressobj", Counting)
    status = refused(bomb, encoding=encoding, most_bytes=2**17)
    assert status.code == StatusCode.RESOURCE_EXHAUSTED
    assert sum(sizes) == 2**17 + 1


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("cut", [0, 1, 10, -1])
def test_compressed_data_that_is_cut_off_is_refused(encoding: str, cut: int) -> None:
    """What ends too early is no message, not even one of nothing."""
    status = refused(COMPRESS[encoding](b"content" * 10)[:cut], encoding=encoding)
    assert status.code == StatusCode.INTERNAL
    assert "Decompression failed" in status.message


@pytest.mark.parametrize(("encoding", "other"), [("gzip", "deflate"), ("deflate", "gzip")])
def test_data_of_another_encoding_is_refused(encoding: str, other: str) -> None:
    """A message is compressed as its call says, or it can't be read."""
    status = refused(COMPRESS[other](b"content"), encoding=encoding)
    assert status.code == StatusCode.INTERNAL
    assert "Decompression failed" in status.message


@pytest.mark.parametrize(("encoding", "flag"), [("identity", 2), ("gzip", 2), ("deflate", 255)])
def test_a_flag_without_a_meaning_is_refused(encoding: str, flag: int) -> None:
    """Compressed is 0 or 1; the message tells what it was."""
    status = refused(gzip.compress(b"content"), encoding=encoding, compressed=flag)
    assert status == Status(StatusCode.INTERNAL, f"message: its flag is {flag}; expected 0 or 1")


def test_a_message_compressed_by_no_encoding_is_refused() -> None:
    """Where the call doesn't say how messages are compressed, none is."""
    status = refused(gzip.compress(b"content"), encoding="identity")
    assert status == Status(StatusCode.INTERNAL, "message: Compression bit set but no encoding is")


@given(st.lists(st.binary(max_size=40), max_size=5), st.sampled_from(["identity", *ENCODINGS]))
def test_garbage_raises_nothing_else(received: list[bytes], encoding: str) -> None:
    """Whatever bytes come are messages, a part of one, or end their call."""
    messages = Messages(most_bytes=MOST)
    with suppress(StatusError):
        for each in received:
            messages.feed(each)
            for flag, content in whole(messages):
                assert len(content) <= MOST
                with suppress(StatusError):
                    assert len(inflate(content, compressed=max(1, flag), encoding=encoding)) <= MOST


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
