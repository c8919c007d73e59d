"""What a report is of: a model, the rows to show it on, and what is known of how both came about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vaeserve.scores import Calibration
from vaeserve.signature import Signature
from vaeserve_training.data import Arrays, Dataset
from vaeserve_training.report.architecture import Stack

# More rows say nothing more on a page, and take longer.
MOST_ROWS = 4000


class Model(Protocol):
    """What computes: a run's modules in PyTorch, or a bundle's graphs in ONNX Runtime."""

    @property
    def latent_dim(self) -> int:
        """The dimensions of the latent space."""

    def encode(self, inputs: Arrays) -> Arrays:
        """Return `mean` and `log_variance`, both [rows, latent]."""

    def decode(self, z: NDArray[np.float32]) -> Arrays:
        """Return reconstructions in raw units, by input name, for `z` [rows, latent]."""

    def score(self, inputs: Arrays) -> Arrays:
        """Return `elbo`, `log_likelihood`, `kl` [rows], `feature_log_likelihood` [rows, features], nats, and `status`.

        At the noise points that the calibration is for.
        """


class Parity(NamedTuple):
    """How far a bundle's outputs lie from PyTorch's: the largest relative error of each, and what is allowed."""

    errors: Mapping[str, float]
    rows: int
    tolerance: float


@dataclass(frozen=True)
class Subject:
    """What a report is of.

    rows: to show the model on, at most `MOST_ROWS`, none of which trained it; None where there are none. golden:
    latents of synthetic rows, [rows, latent], to go between where there are no others. calibration: scores of held-out
    normal rows. evaluations: figures over training, an entry an evaluation, as a run has them. held_out: means over
    normal rows that neither trained nor stopped it, nats. prior: what rows are scored under. masked: columns that had
    one value only. absent: what isn't known, and how to get it.
    """

    title: str
    lead: str
    model: Model
    signature: Signature
    calibration: Calibration
    data: Mapping[str, str]
    design: Mapping[str, str]
    provenance: Mapping[str, str]
    architecture: Sequence[Stack]
    rows: Dataset | None = None
    rows_name: str = ""
    golden: NDArray[np.float32] | None = None
    evaluations: Sequence[Mapping[str, Any]] = ()
    best_step: int | None = None
    held_out: Mapping[str, float] = field(default_factory=dict)
    prior: str = "N(0, I)"
    masked: Sequence[str] = ()
    parity: Parity | None = None
    absent: Mapping[str, str] = field(default_factory=dict)


def some_of(dataset: Dataset) -> Dataset:
    """Return `MOST_ROWS` of a dataset's rows, drawn at random by a fixed seed, or all where there are no more."""
    if len(dataset) <= MOST_ROWS:
        return dataset
    chosen = np.random.default_rng(0).permutation(len(dataset))[:MOST_ROWS]
    return dataset[np.sort(chosen)]
