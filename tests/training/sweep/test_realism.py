"""Precision and recall of draws, on draws that fail in one way."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vaeserve_training.sweep.realism import realism


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return standard-normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


ROWS = torch.cat([random(300, 5) - 6, random(300, 5, seed=1) + 6])


def test_draws_like_the_rows_have_both() -> None:
    """Other draws of the rows' own distribution have high precision and recall."""
    found = realism(torch.cat([random(300, 5, seed=2) - 6, random(300, 5, seed=3) + 6]), ROWS)
    assert found.precision > 0.85
    assert found.recall > 0.85
    assert min(found[:2]) <= found.quality <= max(found[:2])


def test_draws_of_one_kind_lack_recall() -> None:
    """Where half the rows' kind is never drawn, precision is high, and recall half of it."""
    found = realism(random(600, 5, seed=2) - 6, ROWS)
    assert found.precision > 0.85
    assert 0.4 < found.recall < 0.55


def test_draws_that_are_all_the_same_have_no_recall() -> None:
    """What a collapsed model draws without its noise is a row's like at best, and no quality."""
    found = realism(ROWS[:1].repeat(600, 1), ROWS)
    assert found.precision == 1
    assert found.recall < 0.01
    assert found.quality < 0.02


def test_draws_in_the_gap_lack_precision() -> None:
    """What lies between the rows' clusters is none of them."""
    found = realism(random(600, 5, seed=2), ROWS)
    assert found.precision < 0.02
    assert found.quality < 0.04


def test_draws_far_away_have_neither() -> None:
    """Nothing is shared, and the quality is 0, not a division by it."""
    assert realism(random(600, 5) + 1000, ROWS) == (0, 0, 0)


@given(st.integers(0, 1000), st.integers(5, 40))
def test_the_measure_is_between_0_and_1_and_knows_no_order_nor_unit(seed: int, rows: int) -> None:
    """Neither the rows' order nor a common scale, rotation or shift changes anything."""
    draws, points = 2 * random(rows, 3, seed=seed), random(rows, 3, seed=seed + 1)
    found = realism(draws.double(), points.double())
    assert all(0 <= share <= 1 for share in found)
    turned = torch.linalg.qr(random(3, 3, seed=seed)).Q.double()
    again = realism(8 * draws.double().flip(0) @ turned + 3, 8 * points.double() @ turned + 3)
    assert again == pytest.approx(found, abs=1e-9)
