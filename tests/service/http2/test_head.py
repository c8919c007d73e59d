"""What is made of a request's header fields: a call, a call that can't be understood, or none at all."""

from base64 import b64encode
from typing import Any

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from tests.service.frames import call_fields
from vaeserve_service.http2.frames import LARGEST_FRAME
from vaeserve_service.http2.head import Head, read_head
from vaeserve_service.http2.messages import only_trailer
from vaeserve_service.transport import LONGEST_MESSAGE

PATH = "/a.Service/Method"


def read(*more: tuple[str, str | bytes], most_bytes: int = 16_384, **changes: str | bytes | None) -> Head | None:
    """Return what is made of a call's fields, changed as in call_fields, and of further ones."""
    fields = [*call_fields(PATH, **changes), *more]
    return read_head(
        [
            (name.encode("latin-1"), value.encode("latin-1") if isinstance(value, str) else value)
            for name, value in fields
        ],
        most_bytes=most_bytes,
    )


def metadata(*more: tuple[str, str | bytes]) -> list[tuple[str, str | bytes]]:
    """Return what the handler of a call with these fields sees."""
    head = read(*more)
    assert head is not None
    assert head.fault is None
    return list(head.metadata)


def test_a_call_is_read() -> None:
    """A call of no more than it must have waits forever, is not compressed, and shows nothing."""
    assert read() == Head("a.Service", "Method", (), None, "identity")


@pytest.mark.parametrize(
    ("path", "service", "rpc"),
    [
        ("/a.Service/Method", "a.Service", "Method"),
        ("a.Service/Method", "", "a.Service/Method"),
        ("*", "", "*"),
        ("/a/b/Method", "a/b", "Method"),
        ("/Method", "", "Method"),
        ("/", "", ""),
        ("/a/", "a", ""),
        ("/\xe4/\xff", "\xe4", "\xff"),
    ],
)
def test_any_path_is_a_method_that_there_may_be(path: str, service: str, rpc: str) -> None:
    """Whether there is such a method isn't the path's to say."""
    changes: dict[str, Any] = {":path": path}
    head = read(**changes)
    assert head is not None
    assert (head.service, head.rpc) == (service, rpc)


@pytest.mark.parametrize(
    "changes",
    [
        {":method": None},
        {":method": "GET"},
        {":method": "post"},
        {":path": None},
        {":path": ""},
        {":scheme": None},
        {":scheme": ""},
        {":authority": None},
        {":authority": ""},
        {":authority": None, "host": ""},
        {"te": None},
        {"": "a field without a name"},
        {"Upper": "1"},
        {"-biN": "1"},
    ],
)
def test_what_is_no_call_is_malformed(changes: dict[str, Any]) -> None:
    """Fields that HTTP/2 or gRPC has no reading for are none of a call's, and there is nothing to answer."""
    assert read(**changes) is None


@pytest.mark.parametrize(
    "fields",
    [
        [(":status", "200")],
        [(":protocol", "websocket")],
        [(":", "")],
        [(":path", PATH)],
        [(":method", "POST")],
        [(":authority", "localhost")],
    ],
)
def test_pseudo_fields_are_known_first_and_once(fields: list[tuple[str, str]]) -> None:
    """A field of the protocol's own that is unknown, that comes twice, or after others, makes a request malformed."""
    assert read(*fields) is None
    pseudo = [(name.encode(), value.encode()) for name, value in fields + call_fields(PATH) if isinstance(value, str)]
    assert read_head(pseudo, most_bytes=16_384) is None


def test_pseudo_fields_come_before_others() -> None:
    """A request whose method comes after a regular field is malformed, though nothing is missing."""
    fields = [(name.encode(), str(value).encode()) for name, value in call_fields(PATH)]
    assert read_head(fields, most_bytes=16_384) is not None
    assert read_head([*fields[1:], fields[0]], most_bytes=16_384) is None
    assert read_head([], most_bytes=16_384) is None


def test_a_host_names_the_authority_too() -> None:
    """HTTP/1's name for whom a request is meant for is as good."""
    changes: dict[str, Any] = {":authority": None, "host": "localhost"}
    head = read(**changes)
    assert head is not None
    assert head.fault is None


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        ({"te": "gzip"}, StatusCode.INTERNAL, "'te' metadata: 'gzip'; expected trailers"),
        ({"te": ""}, StatusCode.INTERNAL, "'te' metadata: ''; expected trailers"),
        (
            {"grpc-encoding": "br"},
            StatusCode.UNIMPLEMENTED,
            "grpc-encoding: 'br'; expected one of identity, gzip, deflate",
        ),
        ({"grpc-timeout": "1"}, StatusCode.INVALID_ARGUMENT, "grpc-timeout: '1'; expected digits and one of"),
        ({"grpc-timeout": "S"}, StatusCode.INVALID_ARGUMENT, "grpc-timeout: 'S'"),
        ({"grpc-timeout": "-1S"}, StatusCode.INVALID_ARGUMENT, "grpc-timeout: '-1S'"),
        ({"grpc-timeout": "1.5S"}, StatusCode.INVALID_ARGUMENT, "grpc-timeout: '1.5S'"),
        ({"grpc-timeout": "1s"}, StatusCode.INVALID_ARGUMENT, "grpc-timeout: '1s'"),
        ({"grpc-timeout": "1S\n"}, StatusCode.INVALID_ARGUMENT, "grpc-timeout: '1S\\n'"),
        ({"grpc-timeout": "\xb2S"}, StatusCode.INVALID_ARGUMENT, "grpc-timeout: '\xb2S'"),
        ({"grpc-timeout": "9" * 21 + "n"}, StatusCode.INVALID_ARGUMENT, "grpc-timeout: '999"),
        ({"key-bin": "!"}, StatusCode.INVALID_ARGUMENT, "metadata: illegal base64 under a -bin key"),
        ({"key-bin": "A"}, StatusCode.INVALID_ARGUMENT, "metadata: illegal base64"),
        ({"key-bin": "\xff"}, StatusCode.INVALID_ARGUMENT, "metadata: illegal base64"),
    ],
)
def test_what_cannot_be_understood_is_said(changes: dict[str, Any], code: StatusCode, message: str) -> None:
    """A call with a fault is a call still: its method is known, and its status names the field and its value."""
    head = read(**changes)
    assert head is not None
    assert head.fault is not None
    assert head.fault.code == code
    assert message in head.fault.message
    assert (head.service, head.rpc, head.metadata, head.timeout_s) == ("a.Service", "Method", (), None)


def test_metadata_is_limited_by_what_it_takes() -> None:
    """Each field counts its name, its value and 32 bytes; one byte more than the limit is a fault of the call."""
    size = sum(len(name) + len(str(value)) + 32 for name, value in [*call_fields(PATH), ("a", "1")])
    head = read(("a", "1"), most_bytes=size)
    assert head is not None
    assert head.fault is None
    head = read(("a", "1"), most_bytes=size - 1)
    assert head is not None
    assert head.fault is not None
    assert head.fault.code == StatusCode.RESOURCE_EXHAUSTED
    assert head.fault.message.endswith(f"({size} vs. {size - 1})")
    assert (head.service, head.rpc) == ("a.Service", "Method")


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [
        ("2H", 7200.0),
        ("3M", 180.0),
        ("4S", 4.0),
        ("5m", 0.005),
        ("6u", 6e-6),
        ("7n", 7e-9),
        ("0S", 0.0),
        ("00000000000000000010S", 10.0),
        ("719H", 719 * 3600.0),
        ("720H", None),
        ("99999999999999999999H", None),
    ],
)
def test_a_timeout_is_so_many_of_its_unit(timeout: str, seconds: float | None) -> None:
    """It is read as seconds; past a month it is none."""
    head = read(grpc_timeout=timeout)
    assert head is not None
    assert head.fault is None
    assert head.timeout_s == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
def test_encodings_that_are_known_are_read(encoding: str) -> None:
    """Messages are compressed as the call says."""
    head = read(grpc_encoding=encoding)
    assert head is not None
    assert (head.encoding, head.fault) == (encoding, None)


def test_handlers_see_what_callers_say_and_nothing_of_the_transport() -> None:
    """Fields come in their order, also twice, as they are; those between the transports are left out."""
    said: list[tuple[str, str | bytes]] = [("a", "1"), ("user-agent", "us"), ("a", "2"), ("b", "\xe4"), ("c", "")]
    hop = [("grpc-timeout", "1S"), ("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip"), ("te", "trailers")]
    assert metadata(*said, *hop) == said


@pytest.mark.parametrize("value", ["a", "\xff", "%"])
@pytest.mark.parametrize("name", ["te", "grpc-encoding", "grpc-timeout", ":path"])
def test_what_is_said_of_a_fault_fits_in_a_frame(name: str, value: str) -> None:
    """However large the value is that can't be understood, an answer that is no more than its end has room for it."""
    changes: dict[str, Any] = {name: value * 15_000}
    head = read(**changes, most_bytes=32_768)
    assert head is not None
    if name == ":path":
        assert (head.service, head.rpc, head.fault) == ("", value * 15_000, None)
        return
    assert head.fault is not None
    assert len(head.fault.message) <= LONGEST_MESSAGE + 3
    assert len(only_trailer(head.fault)) <= LARGEST_FRAME


def test_who_compresses_otherwise_hears_what_is_known() -> None:
    """Of an encoding that is unknown the answer says, for the client's sake, which ones are not."""
    head = read(grpc_encoding="br")
    assert head is not None
    assert head.fault is not None
    assert head.fault.trailers == (("grpc-accept-encoding", "identity,gzip,deflate"),)


def test_several_binary_values_may_share_a_field() -> None:
    """Joined by commas they are several, as gRPC has it; in text a comma is one."""
    said = metadata(("a-bin", b"AAE,/w"), ("b", b"one,two"))
    assert said == [("a-bin", b"\0\1"), ("a-bin", b"\xff"), ("b", "one,two")]


@given(st.binary(max_size=50))
def test_binary_values_are_bytes_padded_or_not(value: bytes) -> None:
    """What is said under a name in -bin comes as the bytes that it is."""
    padded = b64encode(value)
    assert metadata(("a-bin", padded), ("b-bin", padded.rstrip(b"="))) == [("a-bin", value), ("b-bin", value)]


def test_credentials_are_found() -> None:
    """All that is said under authorization is there for whoever decides."""
    head = read(("authorization", "Bearer a"), ("authorization", "Bearer b"), ("x-authorization", "c"))
    assert head is not None
    assert head.authorization == ["Bearer a", "Bearer b"]
    nobody = read()
    assert nobody is not None
    assert nobody.authorization == []


@given(st.lists(st.tuples(st.sampled_from([b":method", b":path", b"te", b"a", b"b-bin"]) | st.binary(), st.binary())))
def test_any_fields_are_read_somehow(fields: list[tuple[bytes, bytes]]) -> None:
    """Nothing that a caller says raises."""
    read_head(fields, most_bytes=1024)
    call = [(name.encode(), str(value).encode()) for name, value in call_fields(PATH)]
    read_head(call + fields, most_bytes=1024)
