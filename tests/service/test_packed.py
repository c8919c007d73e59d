"""ScoreResponses packed from records, against protobuf's own."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from vaeserve.scores import Attribution, Scores
from vaeserve.v1 import vae_pb2 as pb
from vaeserve_service.packed import arrays, records, score_response

NUMBERS = ("score", "elbo", "log_likelihood", "kl", "p_value")


@given(
    rows=st.sampled_from([0, 1, 2, 31, 32, 127, 128, 5000]),
    seed=st.integers(0, 2**32 - 1),
    request_id=st.text(max_size=300),
    top_features=st.integers(0, 3),
)
def test_packed_bytes_are_the_message(rows: int, seed: int, request_id: str, top_features: int) -> None:
    """Whatever the scores, protobuf reads of the packed bytes what it would have been given."""
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=(4, rows)).astype(np.float32)
    numbers[generator.random(numbers.shape) < 0.1] = np.nan
    attributions = tuple(tuple(Attribution(f"x{i}", float(i) / 2) for i in range(top_features)) for _ in range(rows))
    scores = Scores(
        "fraud",
        "12",
        numbers[0],
        numbers[1],
        numbers[2],
        numbers[3],
        generator.random(rows),
        generator.random(rows) < 0.5,
        generator.integers(0, 4, rows).astype(np.int8),
        attributions if top_features else (),
    )
    expected = pb.ScoreResponse(
        model=pb.ModelSpec(name="fraud", version="12"),
        **{name: getattr(scores, name).tolist() for name in NUMBERS},
        anomalous=scores.anomalous.tolist(),
        status=scores.status.tolist(),
        attributions=[
            pb.Attributions(features=[a.feature for a in row], excess=[a.excess for a in row])
            for row in scores.attributions
        ],
        request_id=request_id,
    )
    outputs: dict[str, NDArray[Any]] = {"records": records(scores)}
    if top_features:
        outputs["attributions"] = np.fromiter(attributions, object, rows)
    packed = pb.ScoreResponse.FromString(score_response(outputs, model="fraud", version="12", request_id=request_id))
    # NaN is not itself, so bytes are compared.
    assert packed.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    for name, array in arrays(records(scores)).items():
        assert array.dtype == getattr(scores, name).dtype
        assert array.tobytes() == getattr(scores, name).tobytes()
