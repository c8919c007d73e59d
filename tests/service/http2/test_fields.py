"""Header fields: read as another decoder would, however they are compressed, and remembered only while that holds."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest
from hpack import Decoder, Encoder
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.service import frames as hand
from vaeserve_service.http2.fields import FieldDecoder, Fields, block
from vaeserve_service.http2.frames import Code, Http2Error

# A field, and whether it may not be remembered.
Field = tuple[bytes, bytes, bool]
# The fields of a block, or the size that the sender's table has from now on.
Step = list[Field] | int

FIELD: st.SearchStrategy[Field] = st.tuples(
    st.sampled_from([b":method", b"te", b"a", b"traceparent"]),
    st.sampled_from([b"POST", b"trailers", b"", b"1", b"a longer value that takes its room"]),
    st.sampled_from([False, False, False, True]),
)
METHOD: Field = (b":method", b"POST", False)  # which the static table has
STEPS: st.SearchStrategy[list[Step]] = st.lists(
    st.lists(FIELD, max_size=3) | st.just([METHOD]) | st.sampled_from([0, 80, 4096]) | st.integers(0, 4096),
    min_size=10,
    max_size=40,
)


def plain(fields: Fields) -> list[tuple[bytes, bytes]]:
    """Make nothing of fields."""
    return list(fields)


def table(decoder: Decoder) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Return how large a decoder's table may be, and what is in it."""
    return decoder.header_table.maxsize, list(decoder.header_table.dynamic_entries)


def decoder(**options: Any) -> FieldDecoder[list[tuple[bytes, bytes]]]:
    """Return a decoder of fields as they are."""
    return FieldDecoder(plain, **{"most_bytes": 16_384} | options)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.binary(max_size=300)), max_size=6))
@example([(b"a", bytes(126)), (b"b", bytes(127)), (b"c", bytes(254)), (b"d", bytes(255)), (b"e", bytes(20_000))])
def test_what_we_send_is_read_by_others(fields: list[tuple[bytes, bytes]]) -> None:
    """Another decoder reads our blocks, of strings of any length, and keeps none of them in its table."""
    theirs = Decoder(max_header_list_size=100_000)
    assert theirs.decode(block(fields), raw=True) == fields
    assert not theirs.header_table.dynamic_entries


@settings(max_examples=300)
@given(STEPS, st.booleans())
def test_any_blocks_are_read_as_without_a_memory(steps: list[Step], huffman: bool) -> None:
    """Fields that repeat, new ones, secret ones, tables of any size: what each block says is what it says to others."""
    encoder, theirs, ours = Encoder(), Decoder(), decoder()
    for step in steps:
        if isinstance(step, int):
            if step != encoder.header_table_size:  # or it would forget that the size before was another
                encoder.header_table_size = step
            continue
        sent = encoder.encode(step, huffman=huffman)
        assert ours.decode(sent) == theirs.decode(sent, raw=True) == [field[:2] for field in step]
        assert table(ours._decoder) == table(theirs)


def test_a_block_that_resizes_the_table_does_so_each_time() -> None:
    """The same bytes may come again after the table had another size, and what is then added must fit as before."""
    theirs, ours = Decoder(), decoder()
    small, large, post = b"\x3f\x31", b"\x3f\xe1\x1f", b"\x83"  # 80 bytes, 4096 bytes, a field of the static table
    added = [b"\x40" + hand._string(name) + hand._string(b"1" * 10) for name in (b"a", b"b")]  # 43 bytes each
    for sent in (small + post, large + post, small + post, *added, b"\xbe"):
        assert ours.decode(sent) == theirs.decode(sent, raw=True)
        assert table(ours._decoder) == table(theirs)


def test_a_block_that_replaces_an_entry_does_so_each_time() -> None:
    """The table may have as many entries afterwards as before, and is another."""
    theirs, ours = Decoder(), decoder()
    first, second = (b"\x40" + hand._string(name) + hand._string(b"1") for name in (b"a", b"b"))
    for sent in (b"\x3f\x09\x83", first, second, first, second, b"\xbe"):  # 40 bytes, of which an entry takes 34
        assert ours.decode(sent) == theirs.decode(sent, raw=True)


def test_a_block_whose_field_had_no_room_is_read_anew_once_there_is() -> None:
    """A field that the table was too small for is kept by the same bytes when it has grown."""
    theirs, ours = Decoder(), decoder()
    added = b"\x40" + hand._string(b"a") + hand._string(b"1")
    for sent in (b"\x20" + added, added, b"\x3f\xe1\x1f\x83", added, b"\xbe"):
        assert ours.decode(sent) == theirs.decode(sent, raw=True)


def test_the_same_bytes_are_read_once() -> None:
    """As long as the table stays as it is a block is not decoded again, and afterwards it is."""
    read: list[Fields] = []
    ours = FieldDecoder[int](lambda fields: read.append(fields) or len(read), most_bytes=1000)  # type: ignore[func-returns-value]
    encoder = Encoder()
    encoder.encode([(b"a", b"1")])
    first, again = Encoder().encode([(b"a", b"1")]), encoder.encode([(b"a", b"1")])
    assert [ours.decode(sent) for sent in (first, again, again, again)] == [1, 2, 2, 2]
    assert ours.decode(encoder.encode([(b"b", b"1")])) == 3
    again = encoder.encode([(b"a", b"1")])
    assert [ours.decode(again) for _ in range(3)] == [4, 4, 4]
    assert read[-1] == [(b"a", b"1")]


def test_what_is_remembered_is_bounded() -> None:
    """Of blocks that differ 16 are kept at most, and none whose fields are larger than 1024 bytes."""
    ours, kept = decoder(), []
    for number in range(100):
        ours.decode(block([(b"a", str(number).encode() * 200)]))
        kept.append(len(ours._known))
    assert max(kept) == 16
    assert min(kept[20:]) == 0
    for size, is_kept in ((1023, True), (1024, False)):
        ours, sent = decoder(), block([(b"a", bytes(size))])
        ours.decode(sent)
        assert (sent in ours._known) is is_kept


def test_a_small_block_of_large_fields_is_not_remembered() -> None:
    """A few bytes that name large fields of the table cost as much to keep as what they say."""
    ours = decoder()
    ours.decode(b"\x40" + hand._string(b"a") + hand._string(b"1" * 600))
    ours.decode(b"\xbe")
    assert list(ours._known) == [b"\xbe"]
    ours.decode(b"\xbe\xbe")
    assert list(ours._known) == [b"\xbe"]


def test_what_is_no_request_is_remembered_too() -> None:
    """Fields of which nothing can be made are read once, as long as they come as the same bytes."""
    read: list[Fields] = []
    ours = FieldDecoder[None](read.append, most_bytes=1000)
    sent = block([(b"a", b"1")])
    for _ in range(3):
        ours.decode(sent)
    assert len(read) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        b"\xbe",  # an entry of the table that there isn't
        b"\x00\x01a\x05b",  # a value that is cut off
        b"\x3f\xe2\x1f",  # a table larger than ours
        b"\x00" + b"\xff" * 20,  # a length without end
        block([(b"a", bytes(1000))] * 5),  # 5,165 bytes, where four times 1,024 are decoded
    ],
)
def test_a_block_that_cannot_be_decoded_ends_the_connection(wrong: bytes) -> None:
    """As nobody knows what the table is then, it is a COMPRESSION_ERROR."""
    with pytest.raises(Http2Error, match="hpack") as raised:
        decoder(most_bytes=1024).decode(wrong)
    assert raised.value.code == Code.COMPRESSION_ERROR


def test_fields_somewhat_too_large_are_still_decoded() -> None:
    """What is over the limit but no attack is read, for its call to be told so."""
    fields = [(b"a", bytes(1000))] * 3
    assert decoder(most_bytes=1024).decode(block(fields)) == fields


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_garbage_raises_nothing_else(blocks: Sequence[bytes]) -> None:
    """Whatever bytes come are fields, or end the connection."""
    ours = decoder()
    with suppress(Http2Error):
        for each in blocks:
            ours.decode(each)
