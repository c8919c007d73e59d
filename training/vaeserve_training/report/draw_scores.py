"""Pictures of scores: where they lie, what p-values are worth, how labels are told apart, what made rows anomalous."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vaeserve_training.report.picture import Picture, picture
from vaeserve_training.report.scoring import Coverage, Curves, Threshold
from vaeserve_training.report.style import ANOMALOUS, FAINT, INK, MUTED, NORMAL, head, legend_above, nats, panel, styled
from vaeserve_training.report.words import number, short

Array = NDArray[np.float64]
BINS = 44
_DASHES = ((0, (1, 1.5)), (0, (4, 2)), "-")


@styled
def histogram(score: Array, anomalous: NDArray[np.bool_] | None, lines: Sequence[Threshold], name: str) -> Picture:
    """Draw scores of normal and anomalous rows, nats, and the thresholds that are known."""
    figure, axes = panel(height=290)
    labels = np.zeros(len(score), bool) if anomalous is None else anomalous
    known = [line for line in lines if line.score is not None]
    low, high = _range(score[~labels] if (~labels).any() else score, [line.score for line in known if line.score])
    edges = np.linspace(low, high, BINS + 1).tolist()
    clipped = np.clip(score, low, high)
    normal = "rows" if anomalous is None else "normal"
    tallest = 0.0
    if (~labels).any():
        heights, *_ = axes.hist(clipped[~labels], edges, density=True, color=NORMAL, alpha=0.8, label=normal)
        tallest = float(np.max(heights[:-1]))
    if labels.any():
        beyond = f", {(score[labels] > high).mean():.0%} beyond" if (score[labels] > high).any() else ""
        heights, *_ = axes.hist(
            clipped[labels], edges, density=True, histtype="step", color=ANOMALOUS, hatch="////", linewidth=1.4,
            label=f"anomalous{beyond}",
        )  # fmt: skip
        tallest = max(tallest, float(np.max(heights[:-1])))
    for line, dash in zip(known, _DASHES, strict=False):
        axes.axvline(
            line.score or 0.0, color=INK, linewidth=1.2, linestyle=dash,
            label=f"{line.rate * 100:g} %: {number(line.score or 0.0)} nats",
        )  # fmt: skip
    more = ", last bar: and above" if score.max() > high else ""
    axes.set(xlabel=f"{nats('score')}{more}", ylabel="density", xlim=(low, high), ylim=(0, 1.08 * tallest or None))
    axes.grid(visible=False, axis="x")
    legend_above(axes)
    said = "; ".join(f"{line.rate * 100:g} % at {number(line.score or 0.0)}" for line in known) or "none"
    alt = (
        f"Histogram of the scores of {len(score):,} rows, median {number(float(np.median(score)))} nats; "
        f"thresholds in nats: {said}."
    )
    return picture(figure, name, alt=alt)


def _range(normal: Array, marks: Sequence[float]) -> tuple[float, float]:
    """Return a range that shows normal rows and the thresholds, and some way beyond."""
    low = float(normal.min())
    high = max([float(np.quantile(normal, 0.98)), *marks])
    return low, high + 0.35 * max(high - low, 1e-3)


@styled
def calibration(measured: Coverage, name: str, *, rows: int) -> Picture:
    """Draw the share of normal rows within each rate, and where it would lie by chance."""
    figure, axes = panel(height=290)
    axes.fill_between(measured.rates, measured.low, measured.high, color=FAINT, label="95 % of the time")
    axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1.2, label="as asked for")
    axes.plot(measured.rates, measured.share, "-", color=NORMAL, label="measured")
    axes.set(xlabel="false-positive rate asked for", ylabel="share of normal rows within", xlim=(0, 1), ylim=(0, 1))
    legend_above(axes)
    inside = ((measured.share >= measured.low) & (measured.share <= measured.high)).mean()
    alt = (
        f"The share of {rows:,} normal rows that p-values call anomalous at each rate, beside that rate; {inside:.0%} "
        "of the points lie in the band where chance would put 95 %."
    )
    return picture(figure, name, alt=alt)


@styled
def roc(measured: Curves, name: str) -> Picture:
    """Draw the ROC curve."""
    figure, axes = panel(height=290)
    axes.plot([0, 1], [0, 1], "--", color=MUTED, linewidth=1.2, label="by chance")
    axes.plot(measured.false_positives, measured.true_positives, color=NORMAL, label=f"AUROC {measured.auroc:.3f}")
    axes.set(xlabel="normal rows flagged, share", ylabel="anomalous rows flagged, share")
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    legend_above(axes)
    return picture(figure, name, alt=f"ROC curve; the area under it is {measured.auroc:.3f}, by chance 0.5.")


@styled
def precision_recall(measured: Curves, name: str) -> Picture:
    """Draw the precision-recall curve."""
    figure, axes = panel(height=290)
    axes.axhline(measured.base, color=MUTED, linewidth=1.2, linestyle="--", label=f"by chance {measured.base:.3f}")
    axes.plot(
        measured.recall, measured.precision, color=NORMAL, label=f"average precision {measured.average_precision:.3f}"
    )
    axes.set(xlabel="recall", ylabel="precision")
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    legend_above(axes, columns=1)
    alt = f"Precision-recall curve; average precision {measured.average_precision:.3f}, by chance {measured.base:.3f}."
    return picture(figure, name, alt=alt)


@styled
def excess_bars(excess: Array, features: Sequence[str], name: str, *, title: str, most: int = 6) -> Picture:
    """Draw a row's features that are worse explained than usual, nats; excess: [features]."""
    order = np.argsort(-excess, kind="stable")[:most]
    figure, axes = panel(height=60 + 26 * len(order))
    axes.barh([*range(len(order))], excess[order], color=ANOMALOUS, height=0.66)
    axes.set_yticks([*range(len(order))], [short(features[index]) for index in order])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params("y", length=0, labelcolor=INK)
    head(figure, title)
    axes.set(xlabel=nats("worse explained than usual"), xlim=(min(0.0, float(excess[order].min())), None))
    said = ", ".join(f"{features[index]} {excess[index]:+.3g}" for index in order)
    return picture(
        figure, name, alt=f"{title}: features by how much worse than usual they are explained, nats: {said}."
    )
