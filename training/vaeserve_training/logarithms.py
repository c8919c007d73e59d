"""Logarithms whose bits, in the exported graphs, don't depend on a row's place in its batch."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.onnx import is_in_onnx_export
from torch.onnx import ops as onnx_ops

# Of an exponential beside one of 0: smaller ones add nothing to it in single precision, and past -87 they, or past -79
# their shares of a sum of thousands, are subnormal numbers, with which some processors are many times slower.
LEAST = -70.0


def log(x: Tensor) -> Tensor:
    """Return `log(x)`."""
    return _exported_log(x) if is_in_onnx_export() else torch.log(x)


def log1p(x: Tensor) -> Tensor:
    """Return `log(1 + x)`."""
    return _exported_log(1 + x) if is_in_onnx_export() else torch.log1p(x)


def softplus(x: Tensor) -> Tensor:
    """Return `log(1 + exp(x))`."""
    if is_in_onnx_export():
        return x.clamp(min=0) + _exported_log(1 + torch.exp(-x.abs()))
    return torch.nn.functional.softplus(x, threshold=40)


def log_sum_exp(x: Tensor) -> Tensor:
    """Return `log(sum(exp(x)))` over the last axis, in the graphs by operators that are quicker than the one.

    The largest share of the sum is `exp(max(x)) / sum(exp(x))`.
    """
    if not is_in_onnx_export():
        return torch.logsumexp(x, dim=-1)
    largest = x.amax(-1, keepdim=True)
    shares = torch.softmax(torch.maximum(x, largest + LEAST), dim=-1)
    return largest.squeeze(-1) - log(shares.amax(-1))


def _exported_log(x: Tensor) -> Tensor:
    """Return the logarithm as a sum's of one term.

    ONNX Runtime's Log and Softplus give a row other bits in another batch: they round a vector of elements and what is
    left over at the end differently. The reductions take one logarithm at a time.
    """
    axis = torch.tensor([-1])
    return onnx_ops.symbolic("ReduceLogSum", (x[..., None], axis), {"keepdims": 0}, dtype=x.dtype, shape=x.shape)


def log_sinhc(x: Tensor) -> Tensor:
    """Return `log(sinh(x / 2) / (x / 2))` for `x` of at least 0."""
    near = x < 1
    small, large = torch.where(near, x, 0.0), torch.where(near, 1.0, x)
    square = small * small
    series = polynomial(square, (1 / 24, -1 / 2_880, 1 / 181_440, -1 / 9_676_800, 1 / 479_001_600))
    return torch.where(near, square * series, 0.5 * large + log((1 - torch.exp(-large)) / large))


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Return the polynomial with `coefficients` from the constant up."""
    value = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + coefficient
    return value
