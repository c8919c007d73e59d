"""Verdicts, on rows of figures made by hand."""

from dataclasses import fields, replace
from typing import Any

import pytest

from vaeserve_training.sweep.measurement import Measurement
from vaeserve_training.sweep.verdict import CRITERIA, EMPTY, MOSTLY_EXPLAINED, POOR, SHARP, Verdict, verdicts

BLANK: dict[str, Any] = {field.name: 0.0 for field in fields(Measurement)}


def row(emptiness: float, error: float, explained: float, quality: float, *, active: int = 5) -> Measurement:
    """Return a row of ten latent dimensions; `emptiness` is a dimension's, nats."""
    figures = {
        "latent_dim": 10, "emptiness": 10 * emptiness, "reconstruction_error": error, "explained": explained,
        "sample_quality": quality, "active_units": active,
    }  # fmt: skip
    return Measurement(**(BLANK | figures))


SHARPEST = row(50, 0.10, 0.95, 0.1)
MIDDLE = row(1, 0.14, 0.85, 0.6)
BLURRED = row(0.1, 0.20, 0.60, 0.4)
GONE = row(0, 0.30, 0.0, 0.01, active=0)


def test_a_whole_trade_off_is_named() -> None:
    """From a light to a heavy weight there are isolated clusters, the balance, one without a name, and the collapse."""
    assert verdicts([SHARPEST, MIDDLE, BLURRED, GONE]) == [
        Verdict.ISOLATED, Verdict.BALANCED, None, Verdict.COLLAPSED,
    ]  # fmt: skip
    assert str(Verdict.ISOLATED) == "isolated clusters, sharp reconstruction, poor generation"


def test_the_order_of_rows_is_nothing_to_a_verdict() -> None:
    """Verdicts go with the figures."""
    assert verdicts([GONE, MIDDLE, SHARPEST]) == [Verdict.COLLAPSED, Verdict.BALANCED, Verdict.ISOLATED]


@pytest.mark.parametrize(
    "changed",
    [
        {"emptiness": 10 * EMPTY - 0.01},
        {"reconstruction_error": SHARP * MIDDLE.reconstruction_error + 1e-6},
        {"sample_quality": POOR * MIDDLE.sample_quality},
    ],
)
def test_isolated_takes_all_three(changed: dict[str, Any]) -> None:
    """A model that isn't empty, isn't sharp or doesn't generate poorly isn't called isolated clusters."""
    just = replace(MIDDLE, emptiness=10 * EMPTY, sample_quality=POOR * MIDDLE.sample_quality - 1e-6)
    just = replace(just, reconstruction_error=SHARP * MIDDLE.reconstruction_error)
    assert verdicts([just, MIDDLE])[0] is Verdict.ISOLATED
    assert verdicts([replace(just, **changed), MIDDLE])[0] is None


def test_balanced_is_one_of_those_that_are_no_other() -> None:
    """Of several it is the one with the best samples; an empty or poor one, or one that explains little, never is."""
    better = replace(MIDDLE, sample_quality=0.7)
    assert verdicts([MIDDLE, better]) == [None, Verdict.BALANCED]
    assert verdicts([MIDDLE, replace(better, emptiness=10 * EMPTY)]) == [Verdict.BALANCED, None]
    assert verdicts([MIDDLE, replace(better, explained=MOSTLY_EXPLAINED - 0.01)]) == [Verdict.BALANCED, None]
    empty = replace(better, emptiness=10 * EMPTY)
    assert verdicts([empty, replace(better, sample_quality=POOR * better.sample_quality - 0.01)]) == [None, None]


def test_nothing_is_named_where_nothing_applies() -> None:
    """A sweep may have no balance, no collapse and no isolated clusters."""
    blurred = replace(BLURRED, explained=0.3)
    assert verdicts([blurred]) == [None]
    assert verdicts([]) == []


def test_a_collapse_is_seen_by_its_units_or_by_what_it_explains() -> None:
    """Without an active unit, or with hardly anything explained, a model collapsed; and is no measure for others."""
    assert verdicts([replace(MIDDLE, active_units=0)]) == [Verdict.COLLAPSED]
    assert verdicts([replace(MIDDLE, explained=0.04)]) == [Verdict.COLLAPSED]
    lucky = replace(GONE, sample_quality=1.0, reconstruction_error=0.0)
    assert verdicts([SHARPEST, MIDDLE, lucky]) == [Verdict.ISOLATED, Verdict.BALANCED, Verdict.COLLAPSED]


def test_each_verdict_says_what_it_takes() -> None:
    """The criteria name the thresholds that are applied."""
    assert set(CRITERIA) == set(Verdict)
    assert f"{EMPTY:g} nats" in CRITERIA[Verdict.ISOLATED]
    assert f"{SHARP:g} times" in CRITERIA[Verdict.ISOLATED]
    assert f"{MOSTLY_EXPLAINED:.0%}" in CRITERIA[Verdict.BALANCED]
