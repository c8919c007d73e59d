"""Each likelihood and network, exported: a row's bits alone and in any batch, and what PyTorch gives."""

import logging
import math
import warnings
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vaeserve_export.graphs import OPSET, ROWS, SAMPLES
from vaeserve_export.operators import check_operators
from vaeserve_service.runtime import Graph, largest_error
from vaeserve_training.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    FixedGaussian,
    Gaussian,
    Likelihood,
    Mixed,
    StudentT,
)
from vaeserve_training.logarithms import log, log1p, softplus
from vaeserve_training.networks import Shape, decoder, encoder

# No multiples of a SIMD register's width, where bits differ first.
WIDTHS = (3, 5, 7, 21, 30, 33)
NARROW_AND_WIDE = [pytest.param(width, marks=() if width in (7, 33) else pytest.mark.slow) for width in WIDTHS]
PARTS = [(start, size) for size in (1, 2, 3, 5, 8, 9, 17, 33) for start in (0, 1, 6, 13, 31) if start + size <= 64]
PARITY = 1e-5

LIKELIHOODS: dict[str, Callable[[int], Likelihood]] = {
    "gaussian": lambda features: Gaussian(features, floor=0.1),
    "gaussian_fixed": FixedGaussian,
    "student_t": lambda features: StudentT(features, floor=0.1),
    "discretized_logistic": lambda features: DiscretizedLogistic(features, floor=math.exp(-6), shared=True),
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "categorical": lambda features: Categorical([1 + feature % 7 for feature in range(features)]),
    "mixed": lambda features: Mixed(
        [
            (range(2, features), StudentT(features - 2, floor=0.1)),
            ([0], Categorical([6])),
            ([1], Bernoulli(1)),
        ]
    ),
}


class Scores(nn.Module):
    """A likelihood's log-density of rows, as the scorer computes it, its mean and parameters, as the decoder does."""

    def __init__(self, likelihood: Likelihood) -> None:
        super().__init__()
        self.likelihood = likelihood

    def forward(self, x: Tensor, output: Tensor) -> tuple[Tensor, ...]:
        """Return log-densities [rows, samples, features], the mean and each parameter."""
        likelihood = self.likelihood
        density, mean = likelihood.log_density(x[:, None], output), likelihood.mean(output)
        # A graph's outputs are computed, never the same as its input.
        return density, *(0 + value for value in (mean, *likelihood.parameters_of(output).values()))


class Logarithms(nn.Module):
    """The functions that have an exported form of their own."""

    def forward(self, positive: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """Return log and log1p of `positive`, and softplus of `x`."""
        return log(positive), log1p(positive), softplus(x)


def assert_stable(module: nn.Module, *inputs: Tensor, samples: bool = False, parity: float = PARITY) -> onnx.ModelProto:
    """Export a module; compare its rows alone and in batches, bit by bit, and all of them to double precision.

    inputs: 64 rows; with `samples`, the last has a second symbolic axis.
    """
    axes: list[dict[int, object]] = [{0: ROWS} for _ in inputs]
    if samples:
        axes[-1][1] = SAMPLES
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            input_names=[f"input{index}" for index in range(len(inputs))],
            dynamic_shapes=tuple(axes),
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = onnx.shape_inference.infer_shapes(program.model_proto, check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    check_operators(model, type(module).__name__)
    graph = Graph(model.SerializeToString(), name="graph")

    def run(rows: slice, samples: slice = slice(None)) -> list[NDArray[np.float32]]:
        feeds = {f"input{index}": value[rows].numpy() for index, value in enumerate(inputs)}
        last = f"input{len(inputs) - 1}"
        feeds[last] = np.ascontiguousarray(feeds[last][:, samples])
        return list(graph.run(feeds, graph.outputs).values())

    whole = run(slice(None))
    for start, size in PARTS:
        for part, output in zip(run(slice(start, start + size)), whole, strict=True):
            assert part.tobytes() == output[start : start + size].tobytes(), f"{size} rows from {start}"
    if samples:
        for row in (0, 1, 40):
            for part, output in zip(run(slice(row, row + 1), slice(0, 3)), whole, strict=True):
                assert part.tobytes() == output[row : row + 1, :3].tobytes(), f"row {row}, 3 samples"
    assert [len(output) for output in run(slice(0, 0))] == [0] * len(whole)
    with torch.no_grad():
        expected = module.double()(*(value.double() for value in inputs))
    for output, reference in zip(whole, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert largest_error(output, reference.numpy()) <= parity
    return model


def random(*shape: int, scale: float = 1.0) -> Tensor:
    """Return normal numbers, the same in every test."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def rows_for(likelihood: Likelihood) -> Tensor:
    """Return 64 rows [64, features] that a likelihood is for, some of them odd."""
    x = random(64, likelihood.features, scale=3.0)
    if likelihood.name in ("categorical", "mixed"):
        x[:, :2] = x[:, :2].abs().round()
        return x.abs().round() if likelihood.name == "categorical" else x
    if likelihood.name in ("gaussian", "gaussian_fixed", "student_t"):
        x[::7] *= 1e10
        return x
    return torch.round(torch.sigmoid(x) * 255) / 255


@pytest.mark.parametrize("features", NARROW_AND_WIDE)
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods_are_the_same_in_any_batch(name: str, features: int) -> None:
    """Log-densities, means and parameters have the same bits alone and in any batch, and agree with PyTorch."""
    likelihood = LIKELIHOODS[name](features)
    output = random(64, 5, likelihood.outputs, scale=3.0)
    assert_stable(Scores(likelihood), rows_for(likelihood), output, samples=True, parity=1e-4)


@pytest.mark.parametrize("features", NARROW_AND_WIDE)
def test_logarithms_are_the_same_in_any_batch(features: int) -> None:
    """The exported logarithms have the same bits in any batch, and single precision from 1e-30 to 1e30."""
    positive = 10 ** random(64, 3, features, scale=12.0).clamp(-30, 30)
    model = assert_stable(Logarithms(), positive, random(64, 3, features, scale=40.0), parity=5e-7)
    assert {"Log", "Softplus"}.isdisjoint(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("kind", ["mlp", "residual"])
@pytest.mark.parametrize("width", NARROW_AND_WIDE)
def test_networks_are_the_same_in_any_batch(kind: str, width: int) -> None:
    """Encoders of rows and decoders of rows and samples keep bits."""
    hidden = (width, 33)
    assert_stable(encoder(kind, inputs=width, outputs=6, hidden=hidden, shape=None), random(64, width))  # type: ignore[arg-type]
    both = decoder(kind, inputs=3, outputs=width, hidden=hidden, shape=None)  # type: ignore[arg-type]
    assert_stable(both, random(64, 5, 3), samples=True)


@pytest.mark.parametrize(
    ("shape", "hidden"),
    [((1, 8, 8), (3, 5)), ((3, 5, 9), (7,)), ((1, 28, 28), (5, 9)), ((1, 13, 7), (21, 33)), ((3, 16, 15), (30,))],
)
def test_convolutional_networks_are_the_same_in_any_batch(shape: Shape, hidden: tuple[int, ...]) -> None:
    """So do convolutional ones, with odd numbers of channels and odd sides."""
    size = math.prod(shape)
    assert_stable(encoder("conv", inputs=size, outputs=6, hidden=hidden, shape=shape), random(64, size))
    both = decoder("conv", inputs=3, outputs=size, hidden=hidden, shape=shape)
    assert_stable(both, random(64, 5, 3), samples=True)
