"""The parameters of a request by the Open Inference Protocol."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vaeserve.errors import InvalidInputError
from vaeserve.scores import Bound, ScoreOptions, refuse_outside
from vaeserve_service.oip import grpc_service_pb2 as pb
from vaeserve_service.servicers import checked_options

Given = Mapping[str, pb.InferParameter]
Value = bool | int | float | str

_MICROSECOND = 1e-6
# Longer than any call lasts, and short enough for the event loop's timers.
_FOR_EVER_S = 1e6


class Parameters(NamedTuple):
    """What a request asks for beside its rows.

    options: how to score. timeout_s: the seconds that it may wait in the queue, 0 for ever.
    marks_final: whether answers of a stream say that they are their requests' last.
    """

    options: ScoreOptions = ScoreOptions()
    timeout_s: float = 0.0
    marks_final: bool = False


_DEFAULT = Parameters()
_NUMBERS: dict[str, type[int] | type[float]] = {
    "num_samples": int,
    "seed": int,
    "false_positive_rate": float,
    "top_features": int,
}
_SCORE = ("bound", *_NUMBERS)
_ALWAYS = ("timeout", "priority")
_MARKS_FINAL = "triton_enable_empty_final_response"
# What Triton's clients may send to a model that keeps nothing from one request to the next.
_UNTOLD = (_MARKS_FINAL, "sequence_id", "sequence_start", "sequence_end")


def read_parameters(given: Given, *, scores: bool) -> Parameters:
    """Return a request's parameters; raises InvalidInputError, naming it, for one that isn't known or can't be.

    scores: whether those of a score are among the known.
    """
    if not given:
        return _DEFAULT
    values = {name: _value(name, parameter) for name, parameter in given.items()}
    known = (*(_SCORE if scores else ()), *_ALWAYS)
    for name in values:
        if name not in known and name not in _UNTOLD:
            raise InvalidInputError(f"parameters: {name[:80]!r}; expected one of {', '.join(known)}")
    timeout_s = min(_whole("timeout", values.get("timeout", 0)) * _MICROSECOND, _FOR_EVER_S)
    _whole("priority", values.get("priority", 0))
    return Parameters(_options(values) if scores else _DEFAULT.options, timeout_s, bool(values.get(_MARKS_FINAL)))


def _options(values: Mapping[str, Value]) -> ScoreOptions:
    numbers: dict[str, Any] = {name: _number(values[name], kind) for name, kind in _NUMBERS.items() if name in values}
    return checked_options(
        numbers.get("num_samples"),
        _bound(values.get("bound", Bound.ELBO.value)),
        numbers.get("seed"),
        numbers.get("false_positive_rate"),
        numbers.get("top_features", 0),
    )


def refuse_parameters(given: Given, where: str, *, without_effect: str) -> None:
    """Raise InvalidInputError for a tensor's parameter, but for one that says what we know."""
    for name in given:
        if name != without_effect:
            raise InvalidInputError(
                f"{where}: parameter {name[:80]!r}; expected none: there is no shared memory, and no classification"
            )


def _value(name: str, parameter: pb.InferParameter) -> Value:
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        raise InvalidInputError(f"parameters: {name[:80]!r} has no value; expected one")
    value: Value = getattr(parameter, kind)
    return value


def _whole(name: str, value: Value) -> int:
    number = _number(value, int)
    refuse_outside(name, number, int, 0, 2**64 - 1)
    return int(number)


def _number(value: Value, kind: type[int] | type[float]) -> Value:
    """Return a number; as text too, for KServe's client can send none with a fraction, nor one past 63 bits."""
    if isinstance(value, bool):
        return repr(value)
    if isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            return value[:80]
    return value


def _bound(value: Value) -> Bound:
    for bound in Bound:
        if str(value).lower() == bound.value:
            return bound
    raise InvalidInputError(f"bound: {str(value)[:80]!r}; expected {' or '.join(bound.value for bound in Bound)}")
