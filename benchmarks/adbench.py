"""ADBench's tables, and its protocol: train on half of the normal rows, test on the others and the anomalies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vaeserve.errors import DataError
from vaeserve.signature import Signature
from vaeserve_training.data import Dataset, Split

MOST_TRAINED = 10_000
MOST_TESTED = 20_000


@dataclass(frozen=True)
class Division:
    """The positions of a table's rows for one seed.

    train: normal rows. intruders: anomalous rows that take the place of the first of them where training is to be
    contaminated. test: rows of both kinds, none of which is in the other two.
    """

    train: NDArray[np.intp]
    intruders: NDArray[np.intp]
    test: NDArray[np.intp]

    def contaminated(self) -> NDArray[np.intp]:
        """Return the training rows with the intruders in."""
        return np.concatenate([self.intruders, self.train[len(self.intruders) :]])


def paths(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Return the files of the sets called `names` (`42_WBC.npz` is "WBC"), or of all, by number.

    Raises DataError for a set that isn't there.
    """
    files = {path.stem.partition("_")[2]: path for path in folder.glob("*_*.npz")}
    for name in names:
        if name not in files:
            raise DataError(f"{folder}: no set {name!r}; expected one of {', '.join(sorted(files)) or 'several'}")
    if not files:
        raise DataError(f"{folder}: no sets; expected files like 42_WBC.npz")
    return sorted((files[name] for name in names or files), key=lambda path: int(path.stem.partition("_")[0]))


def read(path: Path) -> Dataset:
    """Read a set; all columns are numbers, float32, which moves no value by more than 2e-6 standard deviations."""
    with np.load(path) as arrays:
        rows, anomalous = arrays["X"].astype(np.float32), arrays["y"].astype(bool)
    signature = Signature.numbers([f"x{index}" for index in range(rows.shape[1])])
    return Dataset(path.stem.partition("_")[2], signature, {"numeric": rows}, anomalous)


def divide(anomalous: NDArray[np.bool_], *, seed: int, contamination: float = 0.0) -> Division:
    """Divide rows at random: 50 % of the normal ones, at most 10,000, to train on; of the rest, at most 20,000 to test.

    With `contamination` that share of the training rows has intruders, at most half of the anomalies, so that others
    are left to test. Where these are too few for the share, there are fewer training rows.
    """
    generator = np.random.default_rng(seed)
    normal = generator.permutation(np.flatnonzero(~anomalous))
    train, others = normal[: len(normal) // 2][:MOST_TRAINED], normal[len(normal) // 2 :]
    anomalies = np.flatnonzero(anomalous)
    intruders = anomalies[:0]
    if contamination:
        shuffled = np.random.default_rng((seed, 1)).permutation(anomalies)
        intruders, anomalies = np.split(shuffled, [min(int(contamination * len(train)), len(anomalies) // 2)])
        train = train[: round(len(intruders) / contamination)]
    return Division(train, intruders, generator.permutation(np.concatenate([others, anomalies]))[:MOST_TESTED])


def split_of(dataset: Dataset, division: Division, *, contaminated: bool, validation: float, seed: int) -> Split:
    """Return the parts of `dataset`; a share `validation` of the training rows, drawn without labels, is held out."""
    unlabelled = replace(dataset, anomalous=None)
    rows = division.contaminated() if contaminated else division.train
    rows = rows[np.random.default_rng((seed, 2)).permutation(len(rows))]
    held_out = max(1, round(validation * len(rows))) if validation else 0
    return Split(
        train=unlabelled[rows[held_out:]],
        validation=unlabelled[rows[:held_out]],
        calibration=unlabelled[rows[:0]],
        test=dataset[division.test],
    )
