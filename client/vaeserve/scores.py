"""How anomalous rows are: what a scorer's outputs mean under a calibration."""

from dataclasses import dataclass, fields
from enum import Enum, IntEnum
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import InvalidInputError, OutOfRangeError

# A rate that no number of calibration rows will support.
LEAST_RATE = 1e-9

# Features that are ranked one by one.
_FEW = 8

_KINDS = {int: "a whole number", float: "a number"}


class Bound(Enum):
    """The lower bound on log p(x) that is scored, in nats."""

    ELBO = "elbo"
    IWAE = "iwae"


class RowStatus(IntEnum):
    """What a row's numbers are worth; a row that is not OK has NaN for numbers."""

    OK = 0
    UNSCORABLE_MISSING = 1
    UNSCORABLE_NOT_FINITE = 2
    UNSCORABLE_UNKNOWN_CATEGORY = 3


class Attribution(NamedTuple):
    """A feature, and by how many nats its negative log-likelihood exceeds its mean on normal rows."""

    feature: str
    excess: float


@dataclass(frozen=True)
class ScoreOptions:
    """How to score.

    `num_samples` noise points, the bundle's own or, with a `seed`, Philox's; None is the model's default, as it is for
    the `false_positive_rate`, the share of normal rows that may be called anomalous.
    """

    num_samples: int | None = None
    bound: Bound = Bound.ELBO
    seed: int | None = None
    false_positive_rate: float | None = None
    top_features: int = 0

    def __post_init__(self) -> None:
        refuse_outside("num_samples", self.num_samples, int, 1, 2**32 - 1)
        refuse_outside("seed", self.seed, int, 0, 2**64 - 1)
        refuse_outside("false_positive_rate", self.false_positive_rate, float, LEAST_RATE, 1 - LEAST_RATE)
        refuse_outside("top_features", self.top_features, int, 0, 2**32 - 1)
        if not isinstance(self.bound, Bound):
            raise InvalidInputError(f"bound: {self.bound!r}; expected Bound.ELBO or Bound.IWAE")


def refuse_outside(name: str, value: object, kind: type, least: float, most: float) -> None:
    """Raise InvalidInputError, naming it, for a value that is no `kind` (int or float) from `least` to `most`."""
    if value is None:
        return
    number = isinstance(value, int | np.integer) or (kind is float and isinstance(value, float | np.floating))
    if not (number and least <= value <= most):  # type: ignore[operator]
        raise InvalidInputError(f"{name}: {value!r}; expected {_KINDS[kind]} from {_said(least)} to {_said(most)}")


def _said(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:.10g}"


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of rows, each array with one entry a row.

    score: minus the bound that was asked for, nats, float32: higher is more anomalous.
    elbo, log_likelihood, kl: nats, float32; `elbo = log_likelihood - kl`.
    p_value: the share of normal rows that score as high, float64; NaN where the options are not the calibrated ones.
    anomalous: whether the p-value is within the false-positive rate, bool.
    status: `RowStatus`, int8.
    attributions: the top features of each row, most surprising first; empty unless they were asked for.
    """

    model: str
    version: str
    score: NDArray[np.float32]
    elbo: NDArray[np.float32]
    log_likelihood: NDArray[np.float32]
    kl: NDArray[np.float32]
    p_value: NDArray[np.float64]
    anomalous: NDArray[np.bool_]
    status: NDArray[np.int8]
    attributions: tuple[tuple[Attribution, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Self:
        """Return the scores of some rows: a slice, a mask or an array of positions."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        picked = {name: value[rows] for name, value in arrays.items() if isinstance(value, np.ndarray)}
        positions = np.arange(len(self))[rows] if self.attributions else ()
        attributions = tuple(self.attributions[position] for position in positions)
        return type(self)(**(arrays | picked | {"attributions": attributions}))


@dataclass(frozen=True, eq=False)
class Calibration:
    """Held-out scores of normal rows, sorted, and what was held fixed when they were made.

    scores: for each bound, float32 [n], ascending, nats.
    num_samples: the noise points behind them, the bundle's first ones.
    baseline: each feature's mean negative log-likelihood on the same rows, nats, float32 [features].
    false_positive_rate: the rate to decide by where none is asked for.
    """

    scores: dict[Bound, NDArray[np.float32]]
    num_samples: int
    baseline: NDArray[np.float32]
    false_positive_rate: float

    @property
    def rows(self) -> int:
        """How many scores each bound has."""
        return len(self.scores[Bound.ELBO])

    def p_values(self, scores: NDArray[np.float32], bound: Bound) -> NDArray[np.float64]:
        """Return `(1 + #{calibration scores >= score}) / (n + 1)`, NaN for NaN.

        Split-conformal: where a row is exchangeable with the calibration rows, P(p_value <= a) <= a.
        Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, section 4.2;
        Bates et al., Testing for Outliers with Conformal p-values, 2023, eq. 3.
        """
        at_least = self.rows - np.searchsorted(self.scores[bound], scores, side="left")
        p_values = (1.0 + at_least) / (self.rows + 1.0)
        return np.where(np.isnan(scores), np.nan, p_values)

    def threshold(self, bound: Bound, rate: float) -> float:
        """Return the score, in nats, above which a row's p-value is within `rate`, one that the rows support."""
        above = (1.0 + np.arange(self.rows)[::-1]) / (self.rows + 1.0)  # the p-value just above each
        return float(self.scores[bound][np.argmax(above <= rate)])

    def covers(self, options: ScoreOptions) -> bool:
        """Tell whether the calibration speaks of scores made with `options`."""
        return options.seed is None and options.num_samples in (None, self.num_samples)

    def rate(self, options: ScoreOptions) -> float:
        """Return the false-positive rate to decide by.

        Raises InvalidInputError for a rate that these rows can't support, or with options they don't cover.
        """
        rate = options.false_positive_rate
        if rate is None:
            return self.false_positive_rate
        if not self.covers(options):
            raise InvalidInputError(
                f"false_positive_rate: {rate:g} with other options than the calibrated ones; expected "
                f"num_samples = {self.num_samples} and no seed"
            )
        if rate < 1 / (self.rows + 1):
            raise InvalidInputError(
                f"false_positive_rate: {rate:g}; {self.rows} calibration rows support {1 / (self.rows + 1):.3g} or "
                f"more, and {rate:g} takes {rows_needed(rate)}"
            )
        return rate


def rows_needed(false_positive_rate: float) -> int:
    """Return how many calibration rows a rate takes: the least n with `1 / (n + 1) <= rate`."""
    rows = max(1, int(np.ceil(round(1 / false_positive_rate, 9))) - 1)  # 1 / 0.07 and the like aren't exact
    return rows if 1 / (rows + 1) <= false_positive_rate else rows + 1


def count_samples(points: NDArray[np.float32], options: ScoreOptions, *, default: int) -> int:
    """Return how many noise points `options` ask for.

    Raises OutOfRangeError for more than the bundle has `points` [points, latent].
    """
    count = options.num_samples or default
    if count > len(points):
        raise OutOfRangeError(f"num_samples: {count}; the model has {len(points)} noise points")
    return count


def draw_noise(points: NDArray[np.float32], count: int, *, seed: int | None) -> NDArray[np.float32]:
    """Return standard-normal noise [count, latent]: the bundle's first `points`, or with a `seed` Philox's."""
    if seed is None:
        return points[:count]
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.standard_normal((count, points.shape[1]), dtype=np.float32)


def interpret(
    outputs: dict[str, NDArray[Any]],
    calibration: Calibration,
    options: ScoreOptions,
    *,
    model: str,
    version: str,
    features: tuple[str, ...],
) -> Scores:
    """Return what a scorer's `outputs` mean; `feature_log_likelihood` need be there only for top features.

    Raises InvalidInputError for a false-positive rate that the calibration can't support.
    """
    rate = calibration.rate(options)
    score = -outputs[options.bound.value]
    status = outputs["status"].astype(np.int8)
    covered = calibration.covers(options)
    p_value = calibration.p_values(score, options.bound) if covered else np.full(len(score), np.nan)
    return Scores(
        model=model,
        version=version,
        score=score,
        elbo=outputs["elbo"],
        log_likelihood=outputs["log_likelihood"],
        kl=outputs["kl"],
        p_value=p_value,
        anomalous=p_value <= rate,
        status=status,
        attributions=_attributions(outputs, calibration, options.top_features, features)
        if options.top_features
        else (),
    )


def _attributions(
    outputs: dict[str, NDArray[Any]],
    calibration: Calibration,
    count: int,
    features: tuple[str, ...],
) -> tuple[tuple[Attribution, ...], ...]:
    top, values = rank_features(outputs["feature_log_likelihood"], calibration.baseline, count)
    return tuple(
        tuple(
            Attribution(features[feature], float(value))
            for feature, value in zip(row, row_values, strict=True)
            if not np.isnan(value)
        )
        for row, row_values in zip(top, values, strict=True)
    )


def rank_features(
    log_likelihood: NDArray[np.float32], baseline: NDArray[np.float32], count: int
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return the positions of each row's `count` most surprising features, and their excess in nats, NaN last.

    Both [rows, count], for the features' log-likelihoods [rows, features] and their baseline [features]; of equal ones
    the first.
    """
    excess = -log_likelihood - baseline  # (rows, features)
    count = min(count, excess.shape[1])
    if count > _FEW:
        top = np.argsort(-excess, axis=1, kind="stable")[:, :count]
        return top, np.take_along_axis(excess, top, axis=1)
    # A few times the largest is had sooner than their order.
    rows = np.arange(len(excess))
    left = np.where(np.isnan(excess), -np.inf, excess)
    top = np.empty((len(excess), count), np.intp)
    values = np.empty((len(excess), count), np.float32)
    for place in range(count):
        top[:, place] = left.argmax(axis=1)
        values[:, place] = left[rows, top[:, place]]
        left[rows, top[:, place]] = -np.inf
    return top, np.where(np.isneginf(values), np.nan, values)
