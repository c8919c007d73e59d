"""A ScoreResponse's bytes, straight from arrays.

protobuf takes repeated fields number by number; on the wire one is its length and its numbers' memory, so that it costs
nothing a row. Source: Protocol Buffers' "Encoding", packed repeated fields.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
_FIELDS = [(name, _tag(name), dtype) for name, dtype in _DTYPES.items()]
_REQUEST_ID = _tag("request_id")


def score_response(scores: Arrays, *, model: str, version: str, request_id: str = "") -> bytes:
    """Return the serialized ScoreResponse of `scores`, the fields of Scores by their names."""
    parts = [_model(model, version)]
    if request_id:
        content = request_id.encode()
        parts += _REQUEST_ID, _varint(len(content)), content
    if len(scores["score"]):
        for name, tag, dtype in _FIELDS:
            content = scores[name].astype(dtype, copy=False).tobytes()
            parts += tag, _varint(len(content)), content
    if "attributions" in scores:
        parts.append(_attributions(scores["attributions"]))
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
