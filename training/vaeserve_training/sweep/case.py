"""A case of a sweep: one weighting of the KL, or the autoencoder beside them, trained and measured."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch

from vaeserve.atomic import write_folder
from vaeserve.errors import DataError, RunError
from vaeserve.source import open_source
from vaeserve_training.checkpoint import Checkpoints
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset, Split, load_dataset, split
from vaeserve_training.run import Run, write_run
from vaeserve_training.sweep.measurement import Measurement, measure
from vaeserve_training.sweep.processes import Report
from vaeserve_training.sweep.realism import Realism
from vaeserve_training.sweep.shown import Shown
from vaeserve_training.sweep.yardstick import Yardstick
from vaeserve_training.train import Evaluation, train

AUTOENCODER = "autoencoder"


@dataclass(frozen=True)
class Rows:
    """Where the rows of a sweep come from; `sha256` is of the rows and their labels, as they were at its start."""

    data: str
    label: str | None
    normal: str | None
    drop: tuple[str, ...]
    sha256: str

    def load(self, settings: TrainConfig) -> Dataset:
        """Read the rows; raises DataError as `load_dataset` does."""
        return load_dataset(
            open_source(self.data),
            label=self.label,
            normal=self.normal,
            drop=self.drop,
            kinds=settings.data.kinds,
            memory_bytes=int(settings.data.memory_gib * 2**30),
        )


@dataclass(frozen=True)
class Case:
    """One model of a sweep, to be trained with `settings` and measured; beta is None for the autoencoder.

    Its run is at `out/runs/NAME`, its figures and what its pictures show at `out/measured/NAME`.
    """

    out: Path
    rows: Rows
    settings: TrainConfig
    seed: int
    device: str
    beta: float | None

    @classmethod
    def of(cls, out: Path, rows: Rows, settings: TrainConfig, *, beta: float | None, seed: int, device: str) -> Self:
        """Return the case of a weighting of the KL, or with none that of the same network with a point for it."""
        if beta is None:
            point = settings.model.model_copy(update={"posterior": "point", "prior": "standard_normal"})
            changed: dict[str, Any] = {"model": point}
        else:
            changed = {"objective": settings.objective.model_copy(update={"beta": beta})}
        return cls(out, rows, settings.model_copy(update=changed), seed, device, beta)

    def __str__(self) -> str:
        return AUTOENCODER if self.beta is None else f"beta {self.beta:g}"

    @property
    def name(self) -> str:
        """The name of its folders."""
        return AUTOENCODER if self.beta is None else f"beta-{self.beta:g}"

    @property
    def run(self) -> Path:
        """Its run."""
        return self.out / "runs" / self.name

    @property
    def measured(self) -> Path:
        """The folder of what was measured."""
        return self.out / "measured" / self.name

    def finished(self) -> bool:
        """Tell whether it is trained and measured."""
        return self.measured.exists()

    def figures(self) -> "Figures":
        """Return what was measured; raises RunError if it can't be read."""
        path = self.measured / "figures.json"
        try:
            figures = json.loads(path.read_bytes())
            return Figures(
                Measurement(**figures["measurement"]), figures["detection"], Realism(**figures["within_reach"])
            )
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path}: not what a sweep wrote: {error}; remove its folder to measure again") from None

    def shown(self) -> Shown:
        """Return what its pictures show; raises RunError if it can't be read."""
        return Shown.read(self.measured / "shown.npz")


@dataclass(frozen=True)
class Figures:
    """What was measured of a case.

    detection: `auroc` and `average_precision` of the whole model's scores on the rows held out for the test, where
    there are labels. within_reach: how like the held-out rows as many training rows are.
    """

    measurement: Measurement
    detection: dict[str, float]
    within_reach: Realism


def train_and_measure(case: Case, report: Report) -> None:
    """Train the case if it isn't, from its checkpoint if it has one, and measure it; reports the steps done.

    One thread, so that its bits are the same however many cases are trained side by side. Raises as `train` does.
    """
    torch.set_num_threads(1)
    dataset = case.rows.load(case.settings)
    if fingerprint(dataset) != case.rows.sha256:
        raise DataError(f"{dataset.name}: other rows than at the sweep's start; expected a file that stays as it is")
    parts = split(dataset, case.settings.data, seed=case.seed)
    run = Run.open(case.run) if case.run.exists() else _train(case, dataset, parts, report)
    report(case.settings.optimizer.max_steps)
    ensemble = run.ensemble()
    yardstick = Yardstick(parts, ensemble)
    figures = Figures(
        measure(ensemble.member, yardstick, seed=case.seed),
        {name: run.record.test[name] for name in ("auroc", "average_precision") if name in run.record.test},
        yardstick.within_reach,
    )
    content = {**asdict(figures), "within_reach": figures.within_reach._asdict()}
    shown = Shown.of(ensemble.member, yardstick, parts, seed=case.seed)
    try:
        write_folder(
            case.measured,
            {"figures.json": json.dumps(content, indent=2).encode(), "shown.npz": shown.to_bytes()},
        )
    except OSError as error:
        raise RunError(f"{case.measured}: {error.strerror}; make room, then --resume") from None


def fingerprint(dataset: Dataset) -> str:
    """Return what tells a dataset and its labels from others."""
    labels = b"" if dataset.anomalous is None else dataset.anomalous.tobytes()
    return hashlib.sha256(dataset.sha256().encode() + labels).hexdigest()


def _train(case: Case, dataset: Dataset, parts: Split, report: Report) -> Run:
    def say(evaluation: Evaluation) -> None:
        report(evaluation.step)

    # The same data, settings and seed, or else the plan would have been refused.
    checkpoints = Checkpoints.beside(case.run, {"sweep": case.name})
    trained = train(
        parts, case.settings, seed=case.seed, device=case.device, checkpoints=checkpoints, on_evaluation=say
    )
    run = write_run(case.run, trained, dataset=dataset, split=parts, seed=case.seed)
    checkpoints.remove()
    return run
