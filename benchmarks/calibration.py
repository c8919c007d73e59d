"""Whether calibrations keep their promise on ADBench's sets: realised false-positive rates beside chance's band."""

import argparse
import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from benchmarks import adbench
from benchmarks.settings import add_overrides, settings
from benchmarks.trial import attempt, threads
from vaeserve.bundle import Bundle
from vaeserve.scores import Bound, Calibration, RowStatus, rows_needed
from vaeserve_export.export import export
from vaeserve_service.runtime import Runtime
from vaeserve_training.config import PRESETS, TrainConfig
from vaeserve_training.data import Dataset, Split
from vaeserve_training.run import write_run

RATES = (0.1, 0.01, 0.001)
BANDS = (0.95, 0.999)
CALIBRATION_ROWS = 200  # of the export; the splits calibrate anew

Scores = dict[Bound, NDArray[np.float32]]


@dataclass(frozen=True)
class Pair:
    """A rate on a split of a set's held-out normal rows: half of them calibrate, the others are fresh.

    called: the fresh rows with p <= rate.
    """

    set: str
    seed: int
    bound: str
    rate: float
    calibrating: int
    fresh: int
    called: int

    @property
    def realised(self) -> float:
        """The share of the fresh rows that are called anomalous."""
        return self.called / self.fresh

    def place(self, band: float) -> str:
        """Tell whether that number lies within the band that holds so much of its distribution, below it or above."""
        least, most = self._number.ppf([(1 - band) / 2, (1 + band) / 2])
        return "below" if self.called < least else "above" if self.called > most else "within"

    def expected(self, band: float) -> float:
        """Return the chance of lying within: the band's, or more, for there is no part of a row."""
        least, most = self._number.ppf([(1 - band) / 2, (1 + band) / 2])
        return float(self._number.cdf(most) - self._number.cdf(least - 1))

    @property
    def _number(self) -> Any:
        """The distribution of `called`. Source: Vovk, Conditional Validity, 2012, proposition 2."""
        k = math.floor(round((self.calibrating + 1) * self.rate, 9))
        return betabinom(self.fresh, k, self.calibrating + 1 - k)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's options."""
    parser.add_argument("--data", type=Path, required=True, help="the folder that has adbench/")
    parser.add_argument("--sets", nargs="+", default=[], metavar="NAME", help="sets (default: all)")
    parser.add_argument("--seeds", type=int, default=10, help="splits of a set, from 0 (default: %(default)s)")
    parser.add_argument("--preset", choices=PRESETS, default="fast", help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads (default: %(default)s)")
    add_overrides(parser)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Train and export once a set; split its held-out normal rows with every seed."""
    config = settings(PRESETS[options.preset], options.overrides)
    pairs, ties = [], {}
    with threads(options.threads):
        for path in adbench.paths(options.data / "adbench", options.sets):
            name, scores = path.stem.partition("_")[2], held_out_scores(path, config)
            ties[name] = round(1 - len(np.unique(scores[Bound.ELBO])) / len(scores[Bound.ELBO]), 5)
            of_set = [pair for seed in range(options.seeds) for pair in pairs_of(name, scores, seed=seed)]
            print(name, summary(of_set), file=sys.stderr)
            pairs += of_set
    return {
        "preset": options.preset,
        "settings": config.model_dump(mode="json"),
        "seeds": options.seeds,
        "all": summary(pairs),
        "rates": {str(rate): summary([pair for pair in pairs if pair.rate == rate]) for rate in RATES},
        "bounds": {bound.value: summary([pair for pair in pairs if pair.bound == bound.value]) for bound in Bound},
        "sets": {
            name: {"tied_scores": share, **summary([pair for pair in pairs if pair.set == name])}
            for name, share in ties.items()
        },
    }


def held_out_scores(path: Path, config: TrainConfig) -> Scores:
    """Train on half of a set's normal rows and export; return the other half's scores by both bounds, nats."""
    dataset = adbench.read(path)
    assert dataset.anomalous is not None  # noqa: S101 - the sets have labels
    division = adbench.divide(dataset.anomalous, seed=0)
    normal = replace(dataset, anomalous=None)
    others = normal[division.test[~dataset.anomalous[division.test]]]
    parts = adbench.split_of(dataset, division, contaminated=False, validation=config.data.validation, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        bundle = _export(normal, replace(parts, calibration=others[:CALIBRATION_ROWS]), config, Path(folder))
        outputs = Runtime.load(bundle).score(
            others.inputs, bundle.noise[: bundle.manifest.num_samples], by_feature=False
        )
    scored = outputs["status"] == RowStatus.OK
    return {bound: -outputs[bound.value][scored] for bound in Bound}


def pairs_of(name: str, scores: Scores, *, seed: int) -> Iterator[Pair]:
    """Split rows at random; yield every bound's every rate that half of them support."""
    rows = np.random.default_rng(seed).permutation(len(scores[Bound.ELBO]))
    calibrating, fresh = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    calibration = Calibration(
        scores={bound: np.sort(some[calibrating]) for bound, some in scores.items()},
        num_samples=0,
        baseline=np.empty(0, np.float32),
        false_positive_rate=RATES[0],
    )
    for bound, some in scores.items():
        p_values = calibration.p_values(some[fresh], bound)
        for rate in RATES:
            if len(calibrating) >= rows_needed(rate):
                called = int((p_values <= rate).sum())
                yield Pair(name, seed, bound.value, rate, len(calibrating), len(fresh), called)


def summary(pairs: list[Pair]) -> dict[str, Any]:
    """Return how many pairs there are, their mean realised rate by the rate, and which share lies in each band."""
    if not pairs:
        return {"pairs": 0}
    bands = {}
    for band in BANDS:
        places = Counter(pair.place(band) for pair in pairs)
        bands[str(band)] = {
            "expected": round(statistics.fmean(pair.expected(band) for pair in pairs), 5),
            **{place: round(places[place] / len(pairs), 5) for place in ("within", "below", "above")},
        }
    ratio = round(statistics.fmean(pair.realised / pair.rate for pair in pairs), 4)
    return {"pairs": len(pairs), "realised_to_rate": ratio, "bands": bands}


def _export(dataset: Dataset, parts: Split, config: TrainConfig, folder: Path) -> Bundle:
    trained = attempt(parts, config, seed=0).trained
    return export(write_run(folder / "run", trained, dataset=dataset, split=parts, seed=0), folder / "models", name="m")
