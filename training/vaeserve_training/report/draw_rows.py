"""Pictures of rows of a table: reconstructions, interpolations and samples, in deviations from what is usual."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vaeserve_training.report.decoding import Scale, Way
from vaeserve_training.report.picture import Picture, picture
from vaeserve_training.report.style import (
    ANOMALOUS,
    DASHES,
    INK,
    NORMAL,
    SERIES,
    WIDTH,
    blank,
    head,
    legend_above,
    panel,
    styled,
)
from vaeserve_training.report.words import short

Array = NDArray[np.float64]
UNIT = "standard deviations from the median"
MOST_FEATURES = 8
# Past this a bar is cut, so that the others can be seen.
FARTHEST = 8.0


@styled
def reconstruction(row: Array, decoded: Array, scale: Scale, name: str, *, title: str) -> Picture:
    """Draw a row's farthest values beside their reconstructions, both [numeric columns], as deviations."""
    known = np.where(np.isnan(row), 0, row)
    order = np.argsort(-np.abs(known), kind="stable")[:MOST_FEATURES]
    at = np.arange(len(order))
    figure, axes = panel(height=90 + 30 * len(order))
    axes.barh(at - 0.2, np.clip(row[order], -FARTHEST, FARTHEST), 0.38, color=NORMAL, label="input")
    axes.barh(
        at + 0.2, np.clip(decoded[order], -FARTHEST, FARTHEST), 0.38, facecolor="none", edgecolor=ANOMALOUS,
        hatch="////", label="reconstruction",
    )  # fmt: skip
    axes.set_yticks(at, [short(scale.names[index]) for index in order])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params("y", length=0, labelcolor=INK)
    cut = f", cut at {FARTHEST:g}" if (np.abs(np.stack([known, decoded])[:, order]) > FARTHEST).any() else ""
    axes.set_xlabel(f"standard deviations{cut}")
    head(figure, title)
    legend_above(axes)
    said = "; ".join(f"{scale.names[index]} {_said(row[index])} and {_said(decoded[index])}" for index in order)
    return picture(figure, name, alt=f"{title}, input and reconstruction in {UNIT}: {said}.")


def _said(deviation: float) -> str:
    return "missing" if np.isnan(deviation) else f"{deviation:+.2g}"


@styled
def way(path: Way, scale: Scale, name: str, *, title: str, label: str) -> Picture:
    """Draw what a way through the latent space changes most, as deviations."""
    values = scale(path.outputs)  # (steps, columns)
    order = np.argsort(-np.ptp(values, axis=0), kind="stable")[: len(SERIES)]
    figure, axes = panel(height=300)
    for index, colour, dash in zip(order, SERIES, DASHES, strict=False):
        axes.plot(path.at, values[:, index], color=colour, linestyle=dash, label=short(scale.names[index], 17))
    axes.set(xlabel=label, ylabel="standard deviations", xlim=(path.at[0], path.at[-1]))
    head(figure, title)
    legend_above(axes)
    said = "; ".join(
        f"{scale.names[index]} from {values[0, index]:+.2g} to {values[-1, index]:+.2g}" for index in order
    )
    return picture(figure, name, alt=f"{title}: the decoded features that change most, in {UNIT}: {said}.")


@styled
def ranges(real: Array, drawn: Array, scale: Scale, name: str, *, columns: Sequence[int]) -> Picture:
    """Draw where the middle nine tenths of rows and of samples lie, [rows, columns], for some of the columns."""
    figure = blank(height=90 + 28 * len(columns), width=WIDTH)
    axes = figure.subplots()
    at = np.arange(len(columns))
    for values, offset, colour, marker, label in (
        (real, -0.17, NORMAL, "o", "rows"),
        (drawn, 0.17, ANOMALOUS, "^", "decoded samples"),
    ):
        low, middle, high = np.nanquantile(values[:, list(columns)], (0.05, 0.5, 0.95), axis=0)
        axes.hlines(at + offset, low, high, color=colour, linewidth=2.4, linestyle="-" if marker == "o" else "--")
        axes.plot(middle, at + offset, marker, color=colour, linestyle="none", markersize=5, label=label)
    axes.set_yticks(at, [short(scale.names[index]) for index in columns])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params("y", length=0, labelcolor=INK)
    axes.set_xlabel("standard deviations")
    legend_above(axes)
    alt = f"Medians and middle nine tenths of {len(columns)} features, of rows and of decoded samples, in {UNIT}."
    return picture(figure, name, alt=alt)
