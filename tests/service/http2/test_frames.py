"""HTTP/2's frames: written as another library reads them, and cut from whatever parts they come in."""

from collections.abc import Iterable

import pytest
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame
from hyperframe.frame import Frame as TheirFrame
from hypothesis import given
from hypothesis import strategies as st

from tests.service.http2.ends import split
from vaeserve_service.http2 import frames
from vaeserve_service.http2.frames import Code, Frame, FrameReader, Http2Error

FRAMES = st.builds(
    Frame, st.integers(0, 255), st.integers(0, 255), st.integers(0, frames.LARGEST_STREAM), st.binary(max_size=300)
)
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=5)


def written(frame: Frame) -> bytes:
    """Return a frame's bytes."""
    return frames.frame(frame.kind, frame.payload, flags=frame.flags, stream=frame.stream)


def parsed(content: bytes) -> list[TheirFrame]:
    """Return frames as another library reads them."""
    read = []
    while content:
        frame, size = TheirFrame.parse_frame_header(memoryview(content[:9]), strict=True)
        frame.parse_body(memoryview(content[9 : 9 + size]))
        read.append(frame)
        content = content[9 + size :]
    return read


def read_all(parts: Iterable[bytes], *, preface: bytes = frames.PREFACE) -> list[Frame]:
    """Return the frames that a reader cuts from what comes after a preface."""
    reader = FrameReader()
    return [frame for part in (preface, *parts) for frame in reader.feed(part)]


@given(st.lists(FRAMES, max_size=8), SIZES)
def test_frames_are_read_from_whatever_parts_they_come_in(sent: list[Frame], sizes: list[int]) -> None:
    """Any frames come back as they were sent, each once it is whole, however what came was split."""
    reader = FrameReader()
    parts = split(frames.PREFACE + b"".join(map(written, sent)), sizes)
    assert [frame for part in parts for frame in reader.feed(part)] == sent


def test_a_frame_is_read_as_soon_as_its_last_byte_is_there() -> None:
    """Nothing is held back, and nothing given out early."""
    reader = FrameReader()
    content = written(Frame(frames.PING, 0, 0, b"12345678"))
    assert list(reader.feed(frames.PREFACE + content[:-1])) == []
    assert list(reader.feed(content[-1:])) == [Frame(frames.PING, 0, 0, b"12345678")]


def test_a_reader_goes_on_after_the_frame_at_which_it_was_left() -> None:
    """Who takes only the first of the frames that came gets the others with what comes next."""
    reader = FrameReader()
    first, second, third = (Frame(frames.PING, 0, 0, bytes([number] * 8)) for number in range(3))
    coming = reader.feed(frames.PREFACE + written(first) + written(second))
    assert next(coming) == first
    coming.close()  # type: ignore[attr-defined]
    assert list(reader.feed(written(third))) == [second, third]


def test_the_reserved_bit_is_passed_over() -> None:
    """The first bit of a stream's number says nothing."""
    content = bytearray(written(Frame(frames.PING, 0, 5, b"")))
    content[5] |= 0x80
    assert read_all([bytes(content)]) == [Frame(frames.PING, 0, 5, b"")]


@pytest.mark.parametrize("wrong", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/1.1", b"\x16\x03\x01", frames.PREFACE[1:]])
def test_another_preface_is_refused_at_its_first_wrong_byte(wrong: bytes) -> None:
    """Other protocols are told from ours by what there is of them, even in single bytes."""
    with pytest.raises(Http2Error, match="preface") as raised:
        read_all(split(wrong, [1]), preface=b"")
    assert raised.value.code == Code.PROTOCOL_ERROR


def test_a_frame_that_is_too_large_is_refused_by_its_head() -> None:
    """16,384 bytes are read; of one byte more only the head need come."""
    largest = Frame(frames.DATA, 0, 1, bytes(frames.LARGEST_FRAME))
    assert read_all([written(largest)]) == [largest]
    with pytest.raises(Http2Error, match=r"16385 bytes; expected 16384") as raised:
        read_all([written(Frame(frames.DATA, 0, 1, bytes(frames.LARGEST_FRAME + 1)))[:9]])
    assert raised.value.code == Code.FRAME_SIZE_ERROR


@given(st.integers(0, 5 * frames.LARGEST_FRAME), st.integers(1, frames.LARGEST_STREAM))
def test_data_is_cut_into_frames_that_others_take(size: int, stream: int) -> None:
    """Data of any size goes in full frames and a rest, in order, and ends no stream."""
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    read = parsed(frames.data_frames(stream, content))
    assert all(isinstance(frame, DataFrame) and not frame.flags and frame.stream_id == stream for frame in read)
    bodies = [frame.data for frame in read if isinstance(frame, DataFrame)]
    assert b"".join(bodies) == content
    assert all(len(body) == frames.LARGEST_FRAME for body in bodies[:-1])
    assert len(bodies[-1]) <= frames.LARGEST_FRAME
    assert all(bodies) or bodies == [b""]


def test_what_we_write_says_what_it_should() -> None:
    """Another library reads the same from our frames."""
    values = {frames.MAX_CONCURRENT_STREAMS: 7, frames.INITIAL_WINDOW_SIZE: frames.LARGEST_WINDOW}
    read = parsed(
        frames.settings(values)
        + frames.rst_stream(3, Code.REFUSED_STREAM)
        + frames.window_update(5, frames.LARGEST_WINDOW)
        + frames.go_away(frames.LARGEST_STREAM, Code.ENHANCE_YOUR_CALM, "calm")
        + frames.frame(frames.HEADERS, b"block", flags=frames.END_HEADERS | frames.END_STREAM, stream=9)
    )
    settings, reset, window, leave, headers = read
    assert isinstance(settings, SettingsFrame)
    assert (settings.stream_id, settings.settings) == (0, values)
    assert isinstance(reset, RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (3, 7)
    assert isinstance(window, WindowUpdateFrame)
    assert (window.stream_id, window.window_increment) == (5, 2**31 - 1)
    assert isinstance(leave, GoAwayFrame)
    assert (leave.stream_id, leave.last_stream_id, leave.error_code) == (0, 2**31 - 1, 11)
    assert leave.additional_data == b"calm"
    assert isinstance(headers, HeadersFrame)
    assert (headers.stream_id, set(headers.flags), headers.data) == (9, {"END_HEADERS", "END_STREAM"}, b"block")


def test_a_number_has_31_bits() -> None:
    """The bit above them is reserved, and a frame of another size is refused."""
    assert frames.read_number(Frame(frames.WINDOW_UPDATE, 0, 0, b"\xff\xff\xff\xfe")) == 2**31 - 2
    for payload in (b"", b"123", b"12345"):
        with pytest.raises(Http2Error, match=f"{len(payload)} bytes in a frame of kind 8") as raised:
            frames.read_number(Frame(frames.WINDOW_UPDATE, 0, 0, payload))
        assert raised.value.code == Code.FRAME_SIZE_ERROR


@given(st.lists(st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1)), max_size=5), st.integers(1, 5))
def test_settings_are_read_in_their_order(pairs: list[tuple[int, int]], more: int) -> None:
    """Each setting is read, also one that is said twice; half a setting is refused."""
    payload = b"".join(name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in pairs)
    assert list(frames.read_settings(Frame(frames.SETTINGS, 0, 0, payload))) == pairs
    with pytest.raises(Http2Error, match="expected 6 for each") as raised:
        list(frames.read_settings(Frame(frames.SETTINGS, 0, 0, payload + bytes(more))))
    assert raised.value.code == Code.FRAME_SIZE_ERROR


@given(st.binary(max_size=50), st.none() | st.integers(0, 255), st.booleans(), st.sampled_from([0, 1]))
def test_padding_and_priority_are_taken_off(content: bytes, padding: int | None, priority: bool, kind: int) -> None:
    """What is within them comes out as it was; data has no priority to take off."""
    flags, payload = 0, content
    if priority and kind == frames.HEADERS:
        flags, payload = flags | frames.PRIORITIZED, b"prior" + payload
    elif priority:
        flags |= frames.PRIORITIZED
    if padding is not None:
        flags, payload = flags | frames.PADDED, bytes([padding]) + payload + bytes(padding)
    assert frames.unpadded(Frame(kind, flags, 1, payload)) == content


@pytest.mark.parametrize(
    ("kind", "flags", "payload", "code"),
    [
        (frames.DATA, frames.PADDED, b"", Code.PROTOCOL_ERROR),
        (frames.DATA, frames.PADDED, b"\x01", Code.PROTOCOL_ERROR),
        (frames.DATA, frames.PADDED, b"\x04abc", Code.PROTOCOL_ERROR),
        (frames.HEADERS, frames.PADDED | frames.PRIORITIZED, b"\x01prior", Code.PROTOCOL_ERROR),
        (frames.HEADERS, frames.PRIORITIZED, b"prio", Code.FRAME_SIZE_ERROR),
        (frames.HEADERS, frames.PADDED | frames.PRIORITIZED, b"", Code.FRAME_SIZE_ERROR),
    ],
)
def test_more_padding_or_priority_than_there_is_is_refused(kind: int, flags: int, payload: bytes, code: Code) -> None:
    """A frame that ends within what its flags promise is an error of its connection."""
    with pytest.raises(Http2Error, match="padding|priority") as raised:
        frames.unpadded(Frame(kind, flags, 1, payload))
    assert raised.value.code == code
