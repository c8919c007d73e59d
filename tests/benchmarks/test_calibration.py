"""The calibration benchmark, on scores and on a set made here."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.calibration import Pair, pairs_of, summary
from vaeserve.scores import Bound


def test_scores_without_ties_lie_in_the_band() -> None:
    """Of many splits of any scores, about as many pairs lie in the band as it says."""
    scores = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    pairs = [pair for seed in range(100) for pair in pairs_of("normal", {Bound.ELBO: scores}, seed=seed)]
    assert {(pair.rate, pair.calibrating, pair.fresh) for pair in pairs} == {
        (r, 2000, 2000) for r in (0.1, 0.01, 0.001)
    }
    band = summary(pairs)["bands"]["0.95"]
    assert band["within"] == pytest.approx(band["expected"], abs=0.04)
    assert summary(pairs)["realised_to_rate"] == pytest.approx(1, abs=0.1)


def test_shifted_scores_lie_outside() -> None:
    """Rows that score higher than those that calibrated are above the band, and lower ones below."""
    pair = Pair("shifted", 0, "elbo", 0.1, 2000, 2000, called=200)
    assert pair.place(0.999) == "within"
    assert Pair(**(vars(pair) | {"called": 290})).place(0.999) == "above"
    assert Pair(**(vars(pair) | {"called": 120})).place(0.999) == "below"


def test_a_rate_that_the_rows_cannot_support_makes_no_pair() -> None:
    """Of 60 rows 30 calibrate, which support 10 % alone."""
    pairs = list(pairs_of("few", {bound: np.arange(60, dtype=np.float32) for bound in Bound}, seed=0))
    assert [(pair.bound, pair.rate) for pair in pairs] == [("elbo", 0.1), ("iwae", 0.1)]


@pytest.mark.slow
def test_measures_a_set(tmp_path: Path) -> None:
    """A set is trained on, exported and scored; its pairs are counted by rate, bound and set."""
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(500, 2)) @ generator.normal(size=(2, 3)) + 0.1 * generator.normal(size=(500, 3))
    (tmp_path / "adbench").mkdir()
    np.savez(tmp_path / "adbench" / "1_plane.npz", X=rows, y=np.arange(500) >= 480)
    out = tmp_path / "results.json"
    arguments = ["--data", str(tmp_path), "--seeds", "2", "--set", "optimizer.max_steps=20"]
    main(["calibration", *arguments, "--set", "model.exemplars=20", "--out", str(out)])
    results = json.loads(out.read_text())
    assert results["all"]["pairs"] == 8  # two bounds, two seeds, and the rates that 120 rows support
    assert {rate: figures["pairs"] for rate, figures in results["rates"].items()} == {"0.1": 4, "0.01": 4, "0.001": 0}
    assert results["sets"]["plane"]["tied_scores"] == 0
    assert results["all"]["bands"]["0.999"]["within"] == 1
