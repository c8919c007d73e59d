"""Sums and means, which in the exported graphs are products with ones.

ONNX Runtime's reductions give a row other bits in another batch; its matrix products don't.
"""

import torch
from torch import Tensor
from torch.onnx import is_in_onnx_export


def total(terms: Tensor) -> Tensor:
    """Return the sum over the last axis."""
    if is_in_onnx_export():
        return (terms @ terms.new_ones(terms.shape[-1], 1)).squeeze(-1)
    return terms.sum(-1)


def mean_over_samples(terms: Tensor) -> Tensor:
    """Return the mean over the middle axis of [rows, samples, features]."""
    if is_in_onnx_export():
        samples = terms.shape[1]
        return ((terms.new_ones(1, samples) @ terms) / samples).squeeze(1)
    return terms.mean(1)


def log_count(terms: Tensor) -> Tensor:
    """Return the logarithm of the length of the last axis, without a logarithm, [...]."""
    return torch.logsumexp(torch.zeros_like(terms), dim=-1)
