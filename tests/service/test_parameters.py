"""The parameters of a request by the Open Inference Protocol."""

from typing import Any

import pytest

from vaeserve.errors import InvalidInputError
from vaeserve.scores import Bound, ScoreOptions
from vaeserve_service.oip import grpc_service_pb2 as pb
from vaeserve_service.parameters import Parameters, read_parameters


def given(**values: Any) -> dict[str, pb.InferParameter]:
    """Return parameters as clients send them: Triton's whole numbers of 64 bits, KServe's as text."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    return {name: pb.InferParameter(**{kinds[type(value)]: value}) for name, value in values.items()}


def test_nothing_is_the_default() -> None:
    """Without parameters a request is scored as the model's default says, and waits as long as it takes."""
    assert read_parameters({}, scores=True) == Parameters(ScoreOptions(), 0.0, False)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({"num_samples": 8, "seed": 3}, ScoreOptions(num_samples=8, seed=3)),
        ({"bound": "IWAE", "top_features": 2}, ScoreOptions(bound=Bound.IWAE, top_features=2)),
        ({"false_positive_rate": 0.05}, ScoreOptions(false_positive_rate=0.05)),
        ({"false_positive_rate": "0.05", "num_samples": "8"}, ScoreOptions(false_positive_rate=0.05, num_samples=8)),
        ({"seed": str(2**64 - 1)}, ScoreOptions(seed=2**64 - 1)),
        ({"sequence_id": 7, "sequence_start": True, "sequence_end": False, "priority": 2}, ScoreOptions()),
    ],
)
def test_options_are_read(values: dict[str, Any], options: ScoreOptions) -> None:
    """Numbers come as numbers or as text, a bound by its name; what has no effect changes nothing."""
    assert read_parameters(given(**values), scores=True).options == options


def test_a_timeout_is_in_microseconds() -> None:
    """It is told in seconds, however long."""
    assert read_parameters(given(timeout=1500), scores=False).timeout_s == pytest.approx(0.0015)
    unsigned = {"timeout": pb.InferParameter(uint64_param=2**64 - 1)}
    assert read_parameters(unsigned, scores=False).timeout_s == 1e6


def test_the_end_is_marked_where_it_is_asked_for() -> None:
    """Triton's word for it is known, as a truth."""
    assert read_parameters(given(triton_enable_empty_final_response=True), scores=False).marks_final
    assert not read_parameters(given(triton_enable_empty_final_response=False), scores=False).marks_final


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"samples": 3}, "parameters: 'samples'; expected one of bound, num_samples, seed"),
        ({"num_samples": 0}, "num_samples: 0; expected a whole number from 1"),
        ({"num_samples": 8.0}, "num_samples: 8.0; expected a whole number"),
        ({"num_samples": True}, "num_samples: 'True'; expected a whole number"),
        ({"num_samples": "eight"}, "num_samples: 'eight'; expected a whole number"),
        ({"num_samples": "9" * 5000}, "num_samples: '999"),
        ({"seed": -1}, "seed: -1"),
        ({"false_positive_rate": "nan"}, "false_positive_rate: nan; expected a number"),
        ({"false_positive_rate": 1}, "false_positive_rate: 1; expected a number"),
        ({"bound": "tight"}, "bound: 'tight'; expected elbo or iwae"),
        ({"bound": 1}, "bound: '1'; expected elbo or iwae"),
        ({"top_features": "a"}, "top_features: 'a'"),
        ({"timeout": -1}, "timeout: -1; expected a whole number from 0"),
        ({"timeout": 0.5}, "timeout: 0.5; expected a whole number"),
        ({"priority": "high"}, "priority: 'high'; expected a whole number from 0"),
        ({"triton_other": True}, "parameters: 'triton_other'"),
    ],
)
def test_what_cannot_be_is_named(values: dict[str, Any], said: str) -> None:
    """An unknown parameter, or a value that can't be, is refused with its name and what was expected."""
    for _ in range(2):  # what was checked before doesn't make a difference
        read_parameters(given(num_samples=8, timeout=1, priority=1), scores=True)
        with pytest.raises(InvalidInputError) as refusal:
            read_parameters(given(**values), scores=True)
        assert said in str(refusal.value)
        assert len(str(refusal.value)) < 500


def test_only_scores_take_a_scores_parameters() -> None:
    """To encode with a number of samples is a mistake, and said."""
    with pytest.raises(InvalidInputError, match="'num_samples'; expected one of timeout, priority"):
        read_parameters(given(num_samples=3), scores=False)


def test_a_parameter_without_a_value_is_refused() -> None:
    """A parameter that a newer client gives a kind of value that isn't known here isn't taken for its default."""
    with pytest.raises(InvalidInputError, match="'seed' has no value"):
        read_parameters({"seed": pb.InferParameter()}, scores=True)
