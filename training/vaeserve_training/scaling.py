"""How a table's numbers are scaled: by their moments, by their quantiles, or through a map to normal ones.

Every density is that of standard-scaled values, whatever the scaling: what differs from those adds its log-Jacobian,
so that bounds of members with different scalings can be compared and averaged.
"""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor, nn
from typing_extensions import override

from vaeserve_training.config import Scaling as ScalingName
from vaeserve_training.sums import total

# Past this a scaled value counts as this: its square, summed over features, stays within single precision.
LARGEST = 1e15
# A column that varies by less than this share of its size doesn't vary, in single precision.
RELATIVE_RESOLUTION = 2.0**-23
# What is narrower than this share of the standard deviation doesn't tell the scale: other values would be past LARGEST.
LEAST_WIDTH = 1e-12
# The central shares of the values whose width tells the scale, the first that isn't zero, and a normal one's width.
CENTRAL = {0.5: 1.34898, 0.9: 3.28971, 0.98: 4.65270, 0.998: 6.18046}
# The map to normal quantiles: its corners, the fewest rows to each, the outermost one in standard deviations, and how
# far apart they are at least.
KNOTS = 33
ROWS_A_KNOT = 8
WIDEST_QUANTILE = 2.5
LEAST_GAP = 1e-3
# How much it may shrink or stretch a value.
SLOPES = (math.exp(-3.0), math.exp(2.0))


Numbers = NDArray[np.float64]


class Moments(NamedTuple):
    """Of each column: its mean, its standard deviation (1 where it isn't scaled), and whether it is, all [columns]."""

    mean: Numbers
    deviation: Numbers
    scaled: NDArray[np.bool_]


class Scaling(nn.Module, ABC):
    """A monotone map of each column's numbers; columns that are not `scaled` [columns] stay as they are.

    center, scale: of the affine part, both [columns].
    """

    scaled: Tensor
    center: Tensor
    scale: Tensor

    def __init__(self, scaled: Tensor) -> None:
        super().__init__()
        self.register_buffer("scaled", scaled, persistent=False)
        self.register_buffer("center", torch.zeros(len(scaled)))
        self.register_buffer("scale", torch.ones(len(scaled)))

    def fit(self, numbers: Tensor) -> Tensor:
        """Learn from `numbers` [rows, columns], float64, NaN for missing; return which columns are constant."""
        array = numbers.numpy()
        present = np.isfinite(array)
        count = np.maximum(present.sum(0), 1)
        filled = np.where(present, array, 0.0)
        mean = filled.sum(0) / count
        deviation = np.sqrt((np.where(present, array - mean, 0.0) ** 2).sum(0) / count)
        constant = deviation <= RELATIVE_RESOLUTION * np.maximum(np.abs(mean), 1e-30)
        scaled = self.scaled.numpy() & ~constant
        self._fit(array, Moments(mean, np.where(scaled, deviation, 1.0), scaled))
        return torch.from_numpy(constant)

    @abstractmethod
    def _fit(self, numbers: Numbers, moments: Moments) -> None:
        """Learn from `numbers` [rows, columns], NaN for missing."""

    @abstractmethod
    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return scaled numbers and the map's log-Jacobian, both [rows, columns]; None where it is 0 everywhere."""

    @abstractmethod
    def inverse(self, x: Tensor) -> Tensor:
        """Return raw numbers [rows, columns]."""

    def _set_affine(self, center: Numbers, scale: Numbers, scaled: NDArray[np.bool_]) -> None:
        self.center.copy_(torch.from_numpy(np.where(scaled, center, np.where(self.scaled.numpy(), center, 0.0))))
        self.scale.copy_(torch.from_numpy(np.where(scaled, scale, 1.0)))

    def _affine(self, raw: Tensor) -> Tensor:
        return ((raw - self.center) / self.scale).clamp(-LARGEST, LARGEST)


class Standard(Scaling):
    """Mean 0 and standard deviation 1: for numbers without extreme outliers."""

    @override
    def _fit(self, numbers: Numbers, moments: Moments) -> None:
        self._set_affine(moments.mean, moments.deviation, moments.scaled)

    @override
    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        return self._affine(raw), None

    @override
    def inverse(self, x: Tensor) -> Tensor:
        return x * self.scale + self.center


class Robust(Scaling):
    """Median 0 and the central values' width that of a normal one: for numbers with outliers, which can't shift it."""

    log_jacobian: Tensor

    def __init__(self, scaled: Tensor) -> None:
        super().__init__(scaled)
        self.register_buffer("log_jacobian", torch.zeros(len(scaled)))

    @override
    def _fit(self, numbers: Numbers, moments: Moments) -> None:
        mean, deviation, scaled = moments
        center, scale = mean.copy(), deviation.copy()
        for column in np.flatnonzero(scaled):
            values = numbers[np.isfinite(numbers[:, column]), column]
            center[column] = np.median(values)
            for share, width in CENTRAL.items():
                low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
                if high - low > max(RELATIVE_RESOLUTION * abs(center[column]), LEAST_WIDTH * deviation[column]):
                    scale[column] = (high - low) / width
                    break
        self._set_affine(center, scale, scaled)
        self.log_jacobian.copy_(torch.from_numpy(np.log(deviation / np.where(scaled, scale, 1.0))))

    @override
    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self._affine(raw)
        return x, self.log_jacobian + torch.zeros_like(x)

    @override
    def inverse(self, x: Tensor) -> Tensor:
        return x * self.scale + self.center


class Quantile(Robust):
    """Robust scaling, then a piecewise-linear map to normal quantiles: for numbers of any shape.

    knots, lines: the map's corners, scaled and mapped, [columns, knots]; where a column has fewer, the last repeats.
    raw_knots: the corners as they are. On which side of one a value lies is asked of these, for many rows may share a
    value that is a corner, and once it is scaled the answer would depend on the precision.
    slopes: of the segments, [columns, knots + 1]: below the first corner, between each two, above the last.
    """

    knots: Tensor
    raw_knots: Tensor
    lines: Tensor
    slopes: Tensor
    log_slopes: Tensor

    def __init__(self, scaled: Tensor) -> None:
        super().__init__(scaled)
        corners = torch.linspace(-1.0, 1.0, KNOTS).repeat(len(scaled), 1)
        self.register_buffer("knots", corners)
        self.register_buffer("raw_knots", corners.clone())
        self.register_buffer("lines", corners.clone())
        self.register_buffer("slopes", torch.ones(len(scaled), KNOTS + 1))
        self.register_buffer("log_slopes", torch.zeros(len(scaled), KNOTS + 1))

    @override
    def _fit(self, numbers: Numbers, moments: Moments) -> None:
        super()._fit(numbers, moments)
        center, scale = self.center.double().numpy(), self.scale.double().numpy()
        for column in np.flatnonzero(moments.scaled):
            values = numbers[np.isfinite(numbers[:, column]), column]
            corners = _corners((values - center[column]) / scale[column])
            for buffer, corner in zip((self.knots, self.lines, self.slopes), corners, strict=True):
                buffer[column] = torch.from_numpy(corner)
            self.raw_knots[column] = torch.from_numpy(corners[0] * scale[column] + center[column])
        self.log_slopes.copy_(torch.log(self.slopes))

    @override
    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self._affine(raw)
        past = raw[..., None] >= self.raw_knots  # (rows, columns, knots)
        log_slope = self.log_slopes[:, 0] + total(past.to(x.dtype) * self.log_slopes.diff(dim=1))
        return _piecewise(x, self.knots, self.lines, self.slopes), self.log_jacobian + log_slope

    @override
    def inverse(self, x: Tensor) -> Tensor:
        return super().inverse(_piecewise(x, self.lines, self.knots, torch.ones_like(self.slopes) / self.slopes))


def _corners(values: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Return knots [KNOTS], their lines [KNOTS] and the slopes [KNOTS + 1] of a column's map to normal quantiles.

    The knots are quantiles at even steps of the normal one; the tails go on as the outermost segments do.
    """
    ordered, rows = np.sort(values), len(values)
    edge = min(WIDEST_QUANTILE, float(ndtri(1 - min(0.25, 4 / rows))))
    count = max(3, min(KNOTS, rows // ROWS_A_KNOT))
    knots = np.quantile(ordered, ndtr(np.linspace(-edge, edge, count)))
    # Values that are shared by many rows make several quantiles: one knot is enough.
    knots = knots[np.concatenate([[True], np.diff(knots) > LEAST_GAP])]
    slopes = np.ones(len(knots) + 1)
    if len(knots) >= 3:
        below = np.searchsorted(ordered, knots, "left") + np.searchsorted(ordered, knots, "right")
        normal = ndtri(np.clip(below / (2 * rows), 0.5 / rows, 1 - 0.5 / rows))
        slopes[1:-1] = np.clip(np.diff(normal) / np.diff(knots), *SLOPES)
        slopes[0], slopes[-1] = slopes[1], slopes[-2]
    lines = np.concatenate([[0.0], np.cumsum(slopes[1:-1] * np.diff(knots))])
    lines -= np.interp(np.median(ordered), knots, lines)  # the median goes to 0
    missing = KNOTS - len(knots)
    return (
        np.pad(knots, (0, missing), "edge"),
        np.pad(lines, (0, missing), "edge"),
        np.pad(slopes, (0, missing), "edge"),
    )


def _piecewise(x: Tensor, knots: Tensor, lines: Tensor, slopes: Tensor) -> Tensor:
    """Return the piecewise-linear map of `x` [rows, columns], a sum of one term a segment, none of which cancel."""
    below = (x - knots[:, 0]).clamp(max=0) * slopes[:, 0]
    above = (x - knots[:, -1]).clamp(min=0) * slopes[:, -1]
    widths = knots.diff(dim=1)  # (columns, segments)
    within = torch.minimum((x[..., None] - knots[:, :-1]).clamp(min=0), widths) * slopes[:, 1:-1]
    return lines[:, 0] + below + total(within) + above


def scaling_of(name: ScalingName, scaled: Tensor) -> Scaling:
    """Return the scaling called `name` for columns of which some are `scaled`, bool [columns]."""
    match name:
        case "standard":
            return Standard(scaled)
        case "robust":
            return Robust(scaled)
        case "quantile":
            return Quantile(scaled)
