"""How a table's numbers are scaled."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch import Tensor

from vaeserve_training.config import Scaling as ScalingName
from vaeserve_training.scaling import LARGEST, Robust, Scaling, Standard, scaling_of

NAMES: tuple[ScalingName, ...] = get_args(ScalingName)
AFFINE: tuple[ScalingName, ...] = ("standard", "robust")
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
COLUMNS = hnp.arrays(np.float64, (30, 2), elements=st.floats(-1e6, 1e6, width=32))


def random(*shape: int) -> Tensor:
    """Return standard-normal numbers in double precision."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def fitted(name: ScalingName, numbers: Tensor) -> Scaling:
    """Return a scaling of all columns, fitted to `numbers`, in double precision."""
    scaling = scaling_of(name, torch.ones(numbers.shape[1], dtype=torch.bool))
    scaling.fit(numbers)
    return scaling.double()


@pytest.mark.parametrize("name", NAMES)
def test_a_normal_column_comes_out_standard(name: ScalingName) -> None:
    """Normal numbers of any place and scale have mean 0 and scale 1 afterwards."""
    numbers = random(4000, 3) * torch.tensor([1e-2, 1.0, 1e6]) + torch.tensor([5.0, 0.0, -1e6])
    x, _ = fitted(name, numbers)(numbers)
    torch.testing.assert_close(x.mean(0), torch.zeros(3).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(x.std(0), torch.ones(3).double(), atol=0.05, rtol=0)


def test_standard_is_mean_and_deviation() -> None:
    """The standard scaling is to the digit that of the mean and the standard deviation, and adds no Jacobian."""
    numbers = random(100, 3) * 7 + 3
    x, log_jacobian = fitted("standard", numbers)(numbers)
    torch.testing.assert_close(x, (numbers - numbers.mean(0)) / numbers.std(0, correction=0), atol=1e-6, rtol=1e-6)
    assert log_jacobian is None


def test_outliers_do_not_move_the_robust_scaling() -> None:
    """A few values a billion times too large leave the others as they were; the standard scaling crushes them."""
    numbers = random(1000, 1)
    dirty = numbers.clone()
    dirty[:5] = 1e9
    clean, _ = fitted("robust", numbers)(numbers[5:])
    robust, _ = fitted("robust", dirty)(dirty[5:])
    standard, _ = fitted("standard", dirty)(dirty[5:])
    torch.testing.assert_close(robust, clean, atol=0.03, rtol=0.03)
    assert standard.std() < 1e-6


@pytest.mark.parametrize("varying", [0.3, 0.05, 0.01])
def test_a_mostly_constant_column_has_the_width_of_what_varies(varying: float) -> None:
    """Where the central half is one value, the next share that isn't tells the scale, which stays finite and sane."""
    numbers = torch.zeros(1000, 1).double()
    numbers[: int(1000 * varying), 0] = 10 * random(int(1000 * varying))
    scaling = fitted("robust", numbers)
    assert 0.1 < float(scaling.scale) < 100
    assert float(scaling.center) == 0


def test_the_robust_jacobian_turns_its_density_into_the_standards() -> None:
    """The log-Jacobian is d(robust) / d(standard), so that densities can be compared and averaged."""
    numbers = random(500, 2).exp() * 3
    raw = torch.tensor([[1.0, 2.0]]).double()
    both = [fitted(name, numbers) for name in ("robust", "standard")]
    step = torch.full_like(raw, 1e-3)
    robust, standard = ((scaling(raw + step)[0] - scaling(raw)[0]) / step for scaling in both)
    jacobian = both[0](raw)[1]
    assert jacobian is not None
    torch.testing.assert_close(jacobian, torch.log(robust / standard), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", AFFINE)
@given(numbers=COLUMNS, rows=COLUMNS)
def test_the_inverse_gives_rows_back(
    name: ScalingName, numbers: NDArray[np.float64], rows: NDArray[np.float64]
) -> None:
    """Any rows, of those fitted or others, come back from their scaled values."""
    scaling = fitted(name, torch.from_numpy(numbers))
    given_rows = torch.from_numpy(rows)
    x, log_jacobian = scaling(given_rows)
    back = scaling.inverse(x)
    tolerance = 1e-9 * (1 + given_rows.abs() + scaling.center.abs())
    kept = x.abs() < LARGEST
    assert ((back - given_rows).abs() <= tolerance)[kept].all()
    assert torch.isfinite(x).all()
    assert log_jacobian is None or torch.isfinite(log_jacobian).all()


@pytest.mark.parametrize("name", NAMES)
@given(numbers=COLUMNS)
def test_the_scaling_rises(name: ScalingName, numbers: NDArray[np.float64]) -> None:
    """The map keeps the order of values."""
    x, _ = fitted(name, torch.from_numpy(numbers))(torch.linspace(-1e6, 1e6, 200).double()[:, None].expand(-1, 2))
    assert (x.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_missing_values_are_not_counted(name: ScalingName) -> None:
    """The scales of a column are those of the values it has."""
    numbers = random(300, 2) * 5 + 2
    gaps = numbers.repeat_interleave(2, 0)
    gaps[1::2] = torch.nan
    with_gaps, without = fitted(name, gaps), fitted(name, numbers)
    torch.testing.assert_close(with_gaps.state_dict(), without.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_constant_columns_are_told_and_left_at_scale_one(name: ScalingName) -> None:
    """One value, one but for rounding, or none at all is constant, and doesn't explode."""
    numbers = torch.stack([torch.full((100,), 7.0), 1e6 + 0.0625 * (torch.arange(100) % 2), random(100)], 1).double()
    numbers = torch.cat([numbers, torch.full((100, 1), torch.nan)], 1)
    scaling = scaling_of(name, torch.ones(4, dtype=torch.bool))
    assert scaling.fit(numbers).tolist() == [True, True, False, True]
    assert scaling.scale[[0, 1, 3]].tolist() == [1, 1, 1]
    x, _ = scaling(torch.nan_to_num(numbers.float()))
    assert x.abs().max() < 1e7


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_to_be_scaled_stays(name: ScalingName) -> None:
    """Bits, and values that are taken as they are, pass through to the last bit, without a Jacobian."""
    numbers = torch.stack([random(100), (random(100) > 0).double()], 1)
    scaling = scaling_of(name, torch.tensor([True, False]))
    assert scaling.fit(numbers).tolist() == [False, False]
    x, log_jacobian = scaling(numbers.float())
    assert torch.equal(x[:, 1], numbers[:, 1].float())
    assert not torch.equal(x[:, 0], numbers[:, 0].float())
    assert log_jacobian is None or (log_jacobian[:, 1] == 0).all()
    assert torch.equal(scaling.inverse(x)[:, 1], x[:, 1])


@pytest.mark.parametrize("name", NAMES)
@given(st.lists(FINITE, min_size=4, max_size=4), st.lists(FINITE, min_size=2, max_size=2))
def test_finite_numbers_stay_finite(name: ScalingName, train: list[float], row: list[float]) -> None:
    """Whatever the columns hold, a finite row scales to finite numbers within the range of the likelihood."""
    scaling = scaling_of(name, torch.tensor([True, True]))
    scaling.fit(torch.tensor(train).double().reshape(2, 2))
    x, log_jacobian = scaling(torch.tensor([row]))
    assert torch.isfinite(x).all()
    assert x.abs().max() <= LARGEST
    assert log_jacobian is None or torch.isfinite(log_jacobian).all()


def test_every_name_has_its_scaling() -> None:
    """The names of the settings are those of the scalings."""
    assert isinstance(scaling_of("standard", torch.tensor([True])), Standard)
    assert isinstance(scaling_of("robust", torch.tensor([True])), Robust)
    assert {type(scaling_of(name, torch.tensor([True]))).__name__.lower() for name in NAMES} == set(NAMES)


def test_the_robust_width_is_that_of_a_normal() -> None:
    """The scale is the width of the central half over that of a normal one, 1.349."""
    numbers = torch.linspace(-1, 1, 1001).double()[:, None]
    scaling = fitted("robust", numbers)
    assert float(scaling.scale) == pytest.approx(1 / 1.34898, rel=1e-5)
    assert float(scaling.center) == pytest.approx(0, abs=1e-6)
    assert math.isfinite(float(scaling.scale))


SHAPES = {
    "normal": lambda: random(2000),
    "skewed": lambda: torch.exp(2 * random(2000)),
    "heavy": lambda: random(2000) / random(2000, 2)[:, 1].abs().clamp(min=1e-3),
    "two humps": lambda: random(2000) + 6 * (torch.arange(2000) % 2),
    "many zeros": lambda: random(2000).clamp(min=0),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_quantiles_make_any_shape_nearly_normal(shape: str) -> None:
    """Whatever the shape, the mapped values' median is 0 and their central quantiles are near a normal's."""
    numbers = SHAPES[shape]()[:, None]
    x, _ = fitted("quantile", numbers)(numbers)
    assert float(x.median()) == pytest.approx(0, abs=0.1)
    assert float(x.abs().max()) < 1e3
    if shape != "many zeros":
        quantiles = torch.quantile(x[:, 0], torch.tensor([0.1, 0.9]).double())
        torch.testing.assert_close(quantiles, torch.tensor([-1.2816, 1.2816]).double(), atol=0.5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_quantile_jacobian_is_its_slope_over_the_standards(shape: str) -> None:
    """The log-Jacobian is d(quantile) / d(standard), by differences, so that densities integrate to as much."""
    numbers = SHAPES[shape]()[:, None]
    scaling, standard = (fitted(name, numbers) for name in ("quantile", "standard"))
    raw = numbers[::20]
    step = 1e-7 * numbers.std() * torch.ones_like(raw)
    mapped = (scaling(raw + step)[0] - scaling(raw - step)[0]) / (2 * step)
    base = (standard(raw + step)[0] - standard(raw - step)[0]) / (2 * step)
    expected = torch.log(mapped / base)
    jacobian = scaling(raw)[1]
    assert jacobian is not None
    near = (jacobian - expected).abs() < 1e-3
    assert near.float().mean() > 0.9  # all but values at a corner


@given(numbers=COLUMNS)
def test_the_quantile_inverse_gives_rows_back(numbers: NDArray[np.float64]) -> None:
    """Rows come back from their mapped values, in double precision to a millionth of what the column spans."""
    scaling = fitted("quantile", torch.from_numpy(numbers))
    given_rows = torch.from_numpy(numbers)
    x, log_jacobian = scaling(given_rows)
    span = (given_rows.amax(0) - given_rows.amin(0)) + given_rows.abs().amax(0)
    kept = x.abs() < 1e9
    assert ((scaling.inverse(x) - given_rows).abs() <= 1e-6 * (span + 1))[kept].all()
    assert log_jacobian is not None
    assert torch.isfinite(log_jacobian).all()
