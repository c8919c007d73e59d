"""A ScoreResponse's bytes, straight from memory.

protobuf takes repeated fields number by number; on the wire one is its length and its numbers' memory, so that it costs
nothing a row. Rows' scores are records, laid out as the response of one row is: most callers ask for one, and get the
record as it is. Source: Protocol Buffers' "Encoding", packed repeated fields.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaeserve.scores import Scores
from vaeserve.v1 import vae_pb2 as pb

Arrays = Mapping[str, NDArray[Any]]

_LENGTH_DELIMITED = 2


def _tag(name: str) -> bytes:
    return _varint(pb.ScoreResponse.DESCRIPTOR.fields_by_name[name].number << 3 | _LENGTH_DELIMITED)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


# What a field's numbers are on the wire; a status is a varint, which is one byte up to 127.
_DTYPES: dict[str, np.dtype[Any]] = {
    "score": np.dtype("<f4"),
    "elbo": np.dtype("<f4"),
    "log_likelihood": np.dtype("<f4"),
    "kl": np.dtype("<f4"),
    "p_value": np.dtype("<f8"),
    "anomalous": np.dtype("?"),
    "status": np.dtype("i1"),
}
_TAGS = {name: _tag(name) for name in _DTYPES}
_REQUEST_ID = _tag("request_id")
# What comes before the number of a field that has one.
_HEADS = {name: _TAGS[name] + _varint(dtype.itemsize) for name, dtype in _DTYPES.items()}
_RECORD = np.dtype([
    part for name, head in _HEADS.items() for part in ((f"{name}_head", f"V{len(head)}"), (name, _DTYPES[name]))
])  # fmt: skip
_BLANK = b"".join(head + bytes(_DTYPES[name].itemsize) for name, head in _HEADS.items())


def records(scores: Scores) -> NDArray[np.void]:
    """Return rows' scores as records [rows], with a field for each array of `scores`, in its units."""
    rows = np.ndarray(len(scores), _RECORD, bytearray(_BLANK * len(scores)))
    for name in _DTYPES:
        rows[name] = getattr(scores, name)
    return rows


def arrays(rows: NDArray[np.void]) -> dict[str, NDArray[Any]]:
    """Return the arrays [rows] that records are of, by their names in Scores; no copies, so not contiguous."""
    return {name: rows[name] for name in _DTYPES}


def score_response(outputs: Arrays, *, model: str, version: str, request_id: str = "") -> bytes:
    """Return the serialized ScoreResponse of a request's `records`, and its `attributions` where it has any."""
    parts = [_model(model, version)]
    rows = outputs["records"]
    if request_id:
        content = request_id.encode()
        parts += _REQUEST_ID, _varint(len(content)), content
    if len(rows) == 1:
        parts.append(rows.tobytes())
    elif len(rows):
        for name, tag in _TAGS.items():
            content = rows[name].tobytes()
            parts += tag, _varint(len(content)), content
    if "attributions" in outputs:
        parts.append(_attributions(outputs["attributions"]))
    # Serialized parts of a message, one after another, are the message.
    return b"".join(parts)


@lru_cache
def _model(name: str, version: str) -> bytes:
    return pb.ScoreResponse(model=pb.ModelSpec(name=name, version=version)).SerializeToString()


def _attributions(rows: NDArray[Any]) -> bytes:
    return pb.ScoreResponse(
        attributions=[
            pb.Attributions(
                features=[attribution.feature for attribution in row],
                excess=[attribution.excess for attribution in row],
            )
            for row in rows
        ]
    ).SerializeToString()
