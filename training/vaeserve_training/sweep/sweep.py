"""A sweep: the same model trained under several weightings of the KL, measured and told apart."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vaeserve.atomic import new_file
from vaeserve.errors import ConfigError, RunError
from vaeserve_training.config import TrainConfig
from vaeserve_training.data import Dataset
from vaeserve_training.sweep import plan
from vaeserve_training.sweep.case import Case, Figures, Rows, train_and_measure
from vaeserve_training.sweep.processes import jobs_for, side_by_side
from vaeserve_training.sweep.shown import Shown
from vaeserve_training.sweep.verdict import CRITERIA, Verdict, verdicts

# What the trade-off table has of a measurement: each column's head, in two words at most, and how it is written.
COLUMNS = {
    "elbo": ("ELBO (nats)", "z.1f"),
    "log_likelihood": ("log-lik. (nats)", "z.1f"),
    "kl": ("KL (nats)", "z.1f"),
    "active_units": ("active units", "d"),
    "emptiness": ("empty (nats)", "z.1f"),
    "overlap": ("overlap", ".0%"),
    "reconstruction_error": ("reconstr. error", ".3f"),
    "sample_quality": ("sample quality", ".2f"),
    "auroc": ("AUROC", ".3f"),
}


@dataclass(frozen=True)
class Entry:
    """One model of a finished sweep; verdict is None where no criterion applies."""

    case: Case
    figures: Figures
    shown: Shown
    verdict: Verdict | None

    def __getitem__(self, figure: str) -> float | None:
        """Return a figure of the measurement or the detection by name, None where it has no meaning."""
        found: float | None = getattr(self.figures.measurement, figure, self.figures.detection.get(figure))
        return found


@dataclass(frozen=True)
class Sweep:
    """A finished sweep: its weightings by beta, and the autoencoder last if it was asked for."""

    out: Path
    data: str
    dataset: Dataset
    seed: int
    entries: list[Entry]

    @property
    def weightings(self) -> list[Entry]:
        """The entries that have a KL."""
        return [entry for entry in self.entries if entry.case.beta is not None]

    @property
    def autoencoder(self) -> Entry | None:
        """The entry with a point for its posterior."""
        return next((entry for entry in self.entries if entry.case.beta is None), None)

    @property
    def within_reach(self) -> float:
        """The sample quality that as many training rows have."""
        return self.entries[0].figures.within_reach.quality

    def named(self, verdict: Verdict) -> list[Entry]:
        """Return the weightings that are what `verdict` says."""
        return [entry for entry in self.entries if entry.verdict is verdict]

    def as_json(self) -> dict[str, Any]:
        """Return what `sweep.json` says."""
        rows = [
            {
                "name": entry.case.name,
                "beta": entry.case.beta,
                "run": str(entry.case.run.relative_to(self.out)),
                "verdict": entry.verdict,
                **asdict(entry.figures.measurement),
                **entry.figures.detection,
            }
            for entry in self.entries
        ]
        return {
            "data": self.data,
            "seed": self.seed,
            "rows": rows,
            "sample_quality_of_training_rows": self.within_reach,
            "verdicts": {verdict: [entry.case.name for entry in self.named(verdict)] for verdict in Verdict},
            "criteria": dict(CRITERIA),
        }

    @property
    def heads(self) -> list[str]:
        """The heads of the trade-off table's columns, those without any figure left out."""
        return [head for head, _ in self._columns().values()]

    def cells(self, entry: Entry) -> list[str]:
        """Return an entry's figures under `heads` as text."""
        values = [(entry[name], form) for name, (_, form) in self._columns().items()]
        return ["" if value is None else format(value, form) for value, form in values]

    def table(self) -> str:
        """Return the trade-off table in Markdown, and below it the verdicts."""
        heads = ["", *(head.replace(" ", "<br>") for head in self.heads)]
        rows = [[str(entry.case), *self.cells(entry)] for entry in self.entries]
        lines = [f"| {' | '.join(line)} |\n" for line in [heads, ["---", *["---:"] * len(self.heads)], *rows]]
        return "".join([*lines, "\n", *(f"- {said}\n" for said in self.said())])

    def said(self) -> list[str]:
        """Return a line for each verdict: the weightings that it is of, or what it takes."""
        names = {verdict: ", ".join(str(entry.case) for entry in self.named(verdict)) for verdict in Verdict}
        return [f"{verdict}: {names[verdict] or f'none; it takes {CRITERIA[verdict]}'}" for verdict in Verdict]

    def _columns(self) -> dict[str, tuple[str, str]]:
        return {name: column for name, column in COLUMNS.items() if any(e[name] is not None for e in self.entries)}


def sweep(
    out: Path,
    rows: Rows,
    dataset: Dataset,
    settings: TrainConfig,
    *,
    betas: Sequence[float],
    autoencoder: bool,
    seed: int,
    device: str,
    jobs: int | None = None,
    resume: bool = False,
    on_step: Callable[[Case, int], None] = lambda _case, _step: None,
) -> Sweep:
    """Train and measure a model for each of `betas` in the folder `out`, and write `sweep.json` and `table.md` there.

    jobs: cases side by side; None is as many as cores and memory allow. Figures are the same for any number. Raises as
    `plan.take` and `train` do; what is finished by then is kept for `resume`.
    """
    plan.take(out, data=rows.data, rows_sha256=rows.sha256, settings=settings, seed=seed, resume=resume)
    weights: list[float | None] = [*sorted(set(betas)), *([None] if autoencoder else [])]
    cases = [Case.of(out, rows, settings, beta=beta, seed=seed, device=device) for beta in weights]
    with plan.alone(out):
        unfinished = [case for case in cases if not case.finished()]
        for case in cases:
            if case not in unfinished:
                on_step(case, settings.optimizer.max_steps)
        size = sum(array.nbytes for array in dataset.arrays.values())
        # Raw, and as the tensors that training and measuring make of them.
        side = jobs or jobs_for(len(unfinished), bytes_each=4 * size)
        side_by_side(train_and_measure, unfinished, jobs=side, on_report=on_step)
        finished = Sweep(out, dataset.name, dataset, seed, _entries(cases))
        _write(out / "sweep.json", json.dumps(finished.as_json(), indent=2) + "\n")
        _write(out / "table.md", finished.table())
    return finished


def check(settings: TrainConfig, betas: Sequence[float]) -> None:
    """Raise ConfigError for what can't be swept."""
    if settings.model.posterior == "point":
        raise ConfigError(
            "model.posterior = point: has no KL to weigh; expected gaussian, and --compare autoencoder beside it"
        )
    if not betas:
        raise ConfigError("--betas: none; expected one or more weights of the KL, such as 0.01,0.1,1,4,20")


def _entries(cases: Sequence[Case]) -> list[Entry]:
    figures = [case.figures() for case in cases]
    weighed = [index for index, case in enumerate(cases) if case.beta is not None]
    found = dict(zip(weighed, verdicts([figures[index].measurement for index in weighed]), strict=True))
    return [Entry(case, figures[index], case.shown(), found.get(index)) for index, case in enumerate(cases)]


def _write(path: Path, text: str) -> None:
    try:
        with new_file(path) as partial:
            partial.write_text(text)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}; make room, then --resume") from None
