"""What the header fields of a request say. Source: "gRPC over HTTP2" and RFC 9113, section 8.3."""

import binascii
import re
from base64 import b64decode
from dataclasses import dataclass

from grpc import StatusCode

from vaeserve_service.http2.fields import Fields
from vaeserve_service.http2.messages import ENCODINGS
from vaeserve_service.transport import Status, clipped

_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
# What is between the two ends' transports, and not told to who answers.
_HOP = frozenset({"te", "content-type", "grpc-timeout", "grpc-encoding", "grpc-accept-encoding"})
# What a field takes beside its name and its value. Source: RFC 9113, section 10.5.1.
_FIELD_BYTES = 32

_TIMEOUT = re.compile(r"([0-9]{1,20})([HMSmun])")
_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
# Past a month nobody waits, nor does a timer count so far.
_LONGEST_S = 2_592_000.0


@dataclass(frozen=True, slots=True)
class Head:
    """A call's method, what its caller says beside it, and until when it waits.

    fault: how the call ends before it begins, where that can't be understood.
    """

    service: str
    rpc: str
    metadata: tuple[tuple[str, str | bytes], ...]
    timeout_s: float | None
    encoding: str
    fault: Status | None = None

    @property
    def authorization(self) -> list[str | bytes]:
        """The credentials that it shows."""
        return [value for name, value in self.metadata if name == "authorization"]


def read_head(fields: Fields, *, most_bytes: int) -> Head | None:
    """Return what a request's fields say, None for those of no gRPC request."""
    pseudo: dict[bytes, bytes] = {}
    regular: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if not name.startswith(b":"):
            regular.append((name, value))
        elif name in pseudo or name not in _PSEUDO or regular:
            return None
        else:
            pseudo[name] = value
    known = dict(regular)
    if (
        pseudo.get(b":method") != b"POST"
        or not pseudo.get(b":scheme")
        or not pseudo.get(b":path")
        or not (pseudo.get(b":authority") or known.get(b"host"))
        or b"te" not in known
        or any(name != name.lower() or not name for name, _ in regular)
    ):
        return None
    path = pseudo[b":path"].decode("latin-1")
    service, _, rpc = path[1:].rpartition("/") if path.startswith("/") else ("", "", path)
    size = sum(len(name) + len(value) + _FIELD_BYTES for name, value in fields)
    if size > most_bytes:
        return _refused(service, rpc, _too_large(size, most_bytes))
    return _read(service, rpc, [(name.decode("latin-1"), value) for name, value in regular])


def _read(service: str, rpc: str, fields: list[tuple[str, bytes]]) -> Head:
    said = {name: value.decode("latin-1") for name, value in fields}
    encoding, timeout = said.get("grpc-encoding", "identity"), said.get("grpc-timeout")
    if said["te"] != "trailers":
        return _refused(service, rpc, Status(StatusCode.INTERNAL, f"'te' metadata: {said['te']!r}; expected trailers"))
    if encoding not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        accepted = (("grpc-accept-encoding", ",".join(ENCODINGS)),)
        fault = Status(StatusCode.UNIMPLEMENTED, f"grpc-encoding: {encoding!r}; expected one of {known}", accepted)
        return _refused(service, rpc, fault)
    if timeout is not None and not _TIMEOUT.fullmatch(timeout):
        expected = "digits and one of H, M, S, m, u, n"
        fault = Status(StatusCode.INVALID_ARGUMENT, f"grpc-timeout: {timeout!r}; expected {expected}")
        return _refused(service, rpc, fault)
    try:
        metadata = tuple((name, each) for name, value in fields if name not in _HOP for each in _values(name, value))
    except binascii.Error:
        return _refused(service, rpc, Status(StatusCode.INVALID_ARGUMENT, "metadata: illegal base64 under a -bin key"))
    return Head(service, rpc, metadata, _seconds(timeout), encoding)


def _refused(service: str, rpc: str, fault: Status) -> Head:
    clip = Status(fault.code, clipped(fault.message), fault.trailers)
    return Head(service, rpc, (), None, "identity", clip)


def _too_large(size: int, most: int) -> Status:
    message = f"received metadata size exceeds hard limit ({size} vs. {most})"
    return Status(StatusCode.RESOURCE_EXHAUSTED, message)


def _seconds(timeout: str | None) -> float | None:
    if timeout is None:
        return None
    seconds = float(timeout[:-1]) * _UNIT_S[timeout[-1]]
    return seconds if seconds < _LONGEST_S else None


def _values(name: str, value: bytes) -> list[str | bytes]:
    """Return what a field says; of bytes, which are written in base64 without padding, it may say several."""
    if not name.endswith("-bin"):
        return [value.decode("latin-1")]
    return [b64decode(each + b"=" * (-len(each) % 4), validate=True) for each in value.split(b",")]
