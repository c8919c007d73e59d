"""The promise of a calibration: of fresh normal rows, as many are called anomalous as the rate says, up to chance."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import betabinom

from vaeserve.bundle import Bundle
from vaeserve.config import load
from vaeserve.scores import Bound, ScoreOptions
from vaeserve.source import open_source
from vaeserve_export.export import export
from vaeserve_export.recalibrate import recalibrate
from vaeserve_jobs.model import Inputs, LocalModel
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import load_dataset, split
from vaeserve_training.run import Run, write_run
from vaeserve_training.train import train

RATES = (0.1, 0.01, 0.001)
BAND = 0.999
KINDS = ["table7", "mixed", "image"]
CALIBRATING = 29_999
FRESH = 30_000
ADBENCH = Path(__file__).parents[3] / "shared" / "data" / "adbench"


def keeps_the_promise(p_values: NDArray[np.float64], rate: float, *, calibration_rows: int) -> bool:
    """Tell whether as many fresh normal rows have p <= rate as chance allows, in a band of `BAND` about the middle.

    With k = floor((n + 1) rate) of n calibration rows, the number among m fresh ones is BetaBinomial(m, k, n + 1 - k):
    the rate that a calibration realises is itself drawn from Beta(k, n + 1 - k). Source: Vovk, Conditional Validity of
    Inductive Conformal Predictors, 2012, proposition 2.
    """
    k = int(round((calibration_rows + 1) * rate, 9))
    number = betabinom(len(p_values), k, calibration_rows + 1 - k)
    least, most = number.ppf([(1 - BAND) / 2, (1 + BAND) / 2])
    return bool(least <= (p_values <= rate).sum() <= most)


def p_values_of(bundle: Bundle, inputs: Inputs, bound: Bound) -> NDArray[np.float64]:
    """Return the p-values of rows, as a job scores them, of those that can be scored."""
    p_values = LocalModel(bundle).score(inputs, ScoreOptions(bound=bound)).scores.p_value
    return p_values[~np.isnan(p_values)]


def write_npz(path: Path, rows: NDArray[Any], anomalous: NDArray[np.bool_] | None = None) -> str:
    """Write rows and labels to a file; return its name."""
    np.savez(path, X=rows, y=np.zeros(len(rows)) if anomalous is None else anomalous)
    return str(path)


def train_on(file: str, path: Path, *, model: dict[str, Any], **optimizer: Any) -> Run:
    """Train on a file of rows for a moment."""
    config = load(TrainConfig, overrides={"model": model, "optimizer": optimizer})
    dataset = load_dataset(open_source(file))
    parts = split(dataset, config.data, seed=0)
    return write_run(path, train(parts, config, seed=0), dataset=dataset, split=parts, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_rows_are_called_anomalous_at_the_rate(bundle_of: Any, rows_file: Any, inputs_of: Any, kind: str) -> None:
    """After a calibration on fresh rows, other fresh rows realise the rates, for numbers, mixed tables and images."""
    bundle = recalibrate(bundle_of(kind), open_source(str(rows_file(kind, CALIBRATING, seed=2))))
    n, fresh = bundle.manifest.calibration.rows, inputs_of(kind, FRESH, seed=3)
    for bound in Bound:
        p_values = p_values_of(bundle, fresh, bound)
        assert len(p_values) > 0.99 * FRESH
        for rate in RATES:
            assert keeps_the_promise(p_values, rate, calibration_rows=n), (bound, rate)


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_nat_breaks_the_promise(bundle_of: Any, rows_file: Any, inputs_of: Any, kind: str) -> None:
    """The same check refuses a calibration whose scores are half a nat too high or too low."""
    bundle = recalibrate(bundle_of(kind), open_source(str(rows_file(kind, CALIBRATING, seed=2))))
    right, fresh = bundle.calibration, inputs_of(kind, FRESH, seed=3)
    for bound in Bound:
        scores = LocalModel(bundle).score(fresh, ScoreOptions(bound=bound)).scores.score
        scores = scores[~np.isnan(scores)]
        for shift in (0.5, -0.5):
            shifted = replace(right, scores=right.scores | {bound: right.scores[bound] + np.float32(shift)})
            p_values = shifted.p_values(scores, bound)
            assert not keeps_the_promise(p_values, 0.1, calibration_rows=len(right.scores[bound])), (bound, shift)


def test_the_training_rows_of_an_overfit_model_break_the_promise(inputs_of: Any, tmp_path: Path) -> None:
    """The same check refuses a calibration on rows that trained the model, and passes one on as many others."""
    rows = inputs_of("table33", 120, seed=4)["numeric"]
    file = write_npz(tmp_path / "few.npz", rows)
    model = {"hidden": [64], "latent_dim": 16, "scaling": "standard", "prior": "standard_normal"}
    run = train_on(file, tmp_path / "run", model=model, max_steps=600, evaluate_every=600)
    bundle = export(run, tmp_path / "models", name="overfit")
    trained = split(load_dataset(open_source(file)), TrainConfig().data, seed=0).train.inputs["numeric"]
    others, fresh = inputs_of("table33", len(trained), seed=6)["numeric"], inputs_of("table33", 10_000, seed=5)
    for name, calibrating, holds in (("others", others, True), ("trained", trained, False)):
        calibrated = recalibrate(bundle, open_source(write_npz(tmp_path / f"{name}.npz", calibrating)))
        for bound in Bound:
            p_values = p_values_of(calibrated, fresh, bound)
            assert keeps_the_promise(p_values, 0.1, calibration_rows=len(trained)) == holds, (name, bound)


@pytest.mark.skipif(not ADBENCH.is_dir(), reason=f"needs ADBench's sets in {ADBENCH}")
@pytest.mark.parametrize("name", ["28_pendigits", "23_mammography"])
@pytest.mark.slow
def test_real_rows_are_called_anomalous_at_the_rate(tmp_path: Path, name: str) -> None:
    """Fresh normal rows of real sets realise the rates, where the calibration's file had labelled anomalies too."""
    with np.load(ADBENCH / f"{name}.npz") as arrays:
        rows, anomalous = arrays["X"].astype(np.float32), arrays["y"].astype(bool)
    normal = np.random.default_rng(0).permutation(np.flatnonzero(~anomalous))
    trained, calibrating, fresh = np.split(normal, [1500, (1500 + len(normal)) // 2])
    file = write_npz(tmp_path / "train.npz", rows[trained])
    model = {"hidden": [32], "latent_dim": 4, "exemplars": 200}
    run = train_on(file, tmp_path / "run", model=model, max_steps=200)
    calibrating = np.concatenate([calibrating, np.flatnonzero(anomalous)])
    source = open_source(write_npz(tmp_path / "calibration.npz", rows[calibrating], anomalous[calibrating]))
    bundle = recalibrate(export(run, tmp_path / "models", name="real"), source)
    n = bundle.manifest.calibration.rows
    assert n == (~anomalous[calibrating]).sum()
    for bound in Bound:
        p_values = p_values_of(bundle, {"numeric": rows[fresh]}, bound)
        for rate in RATES:
            assert keeps_the_promise(p_values, rate, calibration_rows=n), (bound, rate)
