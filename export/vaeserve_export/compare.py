"""Two bundles on the same rows: what would change if the one took the other's place. It takes no PyTorch."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from vaeserve.bundle import Bundle
from vaeserve.errors import DataError
from vaeserve.labels import Labels
from vaeserve.reading import Batch, read
from vaeserve.scores import RowStatus, ScoreOptions, Scores, interpret
from vaeserve.source import Source
from vaeserve_service.runtime import Arrays, Runtime

# Small, so that the models take turns often: drift of the machine hits both alike.
BATCH_ROWS = 1024
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
EXAMPLES = 5


@dataclass(frozen=True)
class Side:
    """One of the two models, as it is by default, on all rows.

    bundle: its path. name, version: the model's.
    unscorable: rows that it can't score; they are not anomalous.
    false_positive_rate: its own, to decide by.
    anomalous, anomalous_share: rows that it calls so, and their share of all rows.
    auroc, average_precision: of its scores, on the rows that both score; None without labels of both kinds.
    cpu_seconds: the processor's time to score all rows; neither loading nor reading is in it.
    rows_per_second: rows by `cpu_seconds`.
    """

    bundle: str
    name: str
    version: str
    unscorable: int
    false_positive_rate: float
    anomalous: int
    anomalous_share: float
    auroc: float | None
    average_precision: float | None
    cpu_seconds: float
    rows_per_second: float


@dataclass(frozen=True)
class Changed:
    """Rows that the two models disagree about, one way.

    count, share: how many, and of all rows. examples: the numbers of the first of them, from 0.
    """

    count: int
    share: float
    examples: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """What changes from model `a` to model `b` on the rows of `data`.

    rows, labelled_anomalous, scored_by_both: how many; None without labels.
    spearman: the rank correlation of their scores, from -1 to 1; None where one scores all rows alike.
    score_shift: quantiles, by level, of b's score minus a's, nats of each one's own density: a shift of all rows alike
        may be the scaling's.
    p_value_shift: quantiles, by level, of b's p-value minus a's.
    newly_anomalous: rows that only b calls anomalous. no_longer_anomalous: those that only a does.
    time_ratio: b's `cpu_seconds` by a's, measured in turns, batch by batch.

    Correlation and shifts are of the rows that both score; the quantiles are empty if there are none.
    """

    data: str
    rows: int
    labelled_anomalous: int | None
    scored_by_both: int
    a: Side
    b: Side
    spearman: float | None
    score_shift: dict[str, float]
    p_value_shift: dict[str, float]
    newly_anomalous: Changed
    no_longer_anomalous: Changed
    time_ratio: float


class _Model:
    """A bundle, ready to score, with what it gave for the rows so far."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.cpu_seconds = 0.0
        self._runtime = Runtime.load(bundle)
        self._parts: list[tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]] = []

    def take(self, inputs: Arrays) -> None:
        """Score the next rows."""
        # The thread's time: a session has no other, and a progress bar has one of its own.
        started = time.thread_time()
        scores = self._score(inputs)
        self.cpu_seconds += time.thread_time() - started
        self._parts.append((scores.score, scores.p_value, scores.anomalous, scores.status == RowStatus.OK))

    def _score(self, inputs: Arrays) -> Scores:
        bundle, manifest = self.bundle, self.bundle.manifest
        return interpret(
            self._runtime.score(inputs, bundle.noise[: manifest.num_samples], by_feature=False),
            bundle.calibration,
            ScoreOptions(),
            model=manifest.name,
            version=bundle.version,
            features=(),
        )

    def finish(self) -> None:
        """Join what it gave: scores, p-values, verdicts, and which rows are scored, each [rows]."""
        self.cpu_seconds = max(self.cpu_seconds, 1e-9)  # a coarse clock may not have moved
        self.score, self.p_value, self.anomalous, self.scored = map(np.concatenate, zip(*self._parts, strict=True))


def compare(
    a: Bundle,
    b: Bundle,
    source: Source,
    *,
    label: str | None = None,
    normal: str | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Comparison:
    """Score the rows of `source` by `a` and by `b`, each with its own defaults, and return what changes.

    Columns are matched by name to each one's own signature. Rows are read a batch at a time, and of each only its
    scores and label are kept; `on_batch` is told how many rows are done. Where the signatures differ the source is
    read twice, in step, for the same text may be a number to one and a category to the other.

    Raises DataError, naming the bundle and the column, for rows that don't fit, and BundleError for a bundle that
    isn't whole.
    """
    Labels.of(source, label, normal)  # refused once, before the work
    first, second = _Model(a), _Model(b)
    labels: list[NDArray[np.bool_]] = []
    rows = 0
    for turn, (of_a, of_b) in enumerate(_in_step(source, a, b, label=label, normal=normal)):
        turns = [(first, of_a.inputs), (second, of_b.inputs)]
        for model, inputs in reversed(turns) if turn % 2 else turns:
            model.take(inputs)
        if of_a.anomalous is not None:
            labels.append(of_a.anomalous)
        rows += _count(of_a)
        on_batch(rows)
    first.finish()
    second.finish()
    return _comparison(source.name, first, second, np.concatenate(labels) if labels else None)


def _in_step(
    source: Source, a: Bundle, b: Bundle, *, label: str | None, normal: str | None
) -> Iterator[tuple[Batch, Batch]]:
    """Yield the same rows as each of the models takes them."""
    of_a = _rows(source, a, label=label, normal=normal)
    if a.manifest.signature == b.manifest.signature:
        yield from ((batch, batch) for batch in of_a)
        return
    for one, other in zip_longest(of_a, _rows(source, b, label=label, normal=normal)):
        if one is None or other is None or _count(one) != _count(other):
            raise DataError(f"{source.name}: its rows changed as they were read; expected a file that stays as it is")
        yield one, other


def _count(batch: Batch) -> int:
    return len(next(iter(batch.inputs.values())))


def _rows(source: Source, bundle: Bundle, *, label: str | None, normal: str | None) -> Iterator[Batch]:
    try:
        yield from read(source, bundle.manifest.signature, label=label, normal=normal, batch_rows=BATCH_ROWS)
    except DataError as error:
        raise DataError(f"{bundle.path}: {error}") from None


def _comparison(data: str, a: _Model, b: _Model, labels: NDArray[np.bool_] | None) -> Comparison:
    both = a.scored & b.scored
    return Comparison(
        data=data,
        rows=len(both),
        labelled_anomalous=None if labels is None else int(labels.sum()),
        scored_by_both=int(both.sum()),
        a=_side(a, both, labels),
        b=_side(b, both, labels),
        spearman=_spearman(a.score[both], b.score[both]),
        score_shift=_quantiles(b.score[both].astype(np.float64) - a.score[both]),
        p_value_shift=_quantiles(b.p_value[both] - a.p_value[both]),
        newly_anomalous=_changed(b.anomalous & ~a.anomalous),
        no_longer_anomalous=_changed(a.anomalous & ~b.anomalous),
        time_ratio=b.cpu_seconds / a.cpu_seconds,
    )


def _side(model: _Model, both: NDArray[np.bool_], labels: NDArray[np.bool_] | None) -> Side:
    rows = len(both)
    auroc = average_precision = None
    if labels is not None and len(set(labels[both].tolist())) == 2:
        auroc = float(roc_auc_score(labels[both], model.score[both]))
        average_precision = float(average_precision_score(labels[both], model.score[both]))
    return Side(
        bundle=str(model.bundle.path),
        name=model.bundle.manifest.name,
        version=model.bundle.version,
        unscorable=int((~model.scored).sum()),
        false_positive_rate=model.bundle.manifest.false_positive_rate,
        anomalous=int(model.anomalous.sum()),
        anomalous_share=float(model.anomalous.mean()),
        auroc=auroc,
        average_precision=average_precision,
        cpu_seconds=model.cpu_seconds,
        rows_per_second=rows / model.cpu_seconds,
    )


def _spearman(a: NDArray[np.float32], b: NDArray[np.float32]) -> float | None:
    if len(a) == 0 or (a == a[0]).all() or (b == b[0]).all():
        return None
    return float(spearmanr(a, b).statistic)


def _quantiles(shifts: NDArray[np.float64]) -> dict[str, float]:
    return {f"{level:g}": float(np.quantile(shifts, level)) for level in QUANTILES if len(shifts)}


def _changed(rows: NDArray[np.bool_]) -> Changed:
    return Changed(int(rows.sum()), float(rows.mean()), tuple(np.flatnonzero(rows)[:EXAMPLES].tolist()))
