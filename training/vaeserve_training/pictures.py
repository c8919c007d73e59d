"""Pictures of what a model makes of rows, as PNG files."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vaeserve.scores import Attribution, Scores

NORMAL, ANOMALOUS = "#3b6ea8", "#c8553d"
DPI = 150
SHOWN = 10

mpl.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 9})


def score_histogram(
    path: Path, scores: NDArray[np.float32], anomalous: NDArray[np.bool_], *, threshold: float, title: str
) -> Path:
    """Draw the scores of normal and anomalous rows, in nats, and the threshold; return `path`."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    low, high = float(scores.min()), float(np.quantile(scores, 0.98))
    edges = np.linspace(low, high, 50).tolist()
    clipped = np.minimum(scores, high)
    axes.hist(clipped[~anomalous], edges, color=NORMAL, alpha=0.75, density=True, label="normal")
    axes.hist(clipped[anomalous], edges, color=ANOMALOUS, alpha=0.65, density=True, label="anomalous")
    axes.axvline(threshold, color="black", linewidth=1, linestyle="--", label=f"threshold, {threshold:.1f} nats")
    axes.set(xlabel="score (nats; the top 2 % in the last bar)", ylabel="density", title=title)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=DPI)
    return path


def image_grid(
    path: Path,
    images: NDArray[np.uint8],
    reconstructions: NDArray[np.uint8],
    scores: Scores,
    *,
    title: str,
) -> Path:
    """Draw the first images [rows, channels, height, width] over their reconstructions; return `path`."""
    count = min(SHOWN, len(images))
    figure = Figure(figsize=(1.0 * count + 1.0, 2.9), layout="constrained")
    grid = figure.subplots(2, count, squeeze=False)
    for column in range(count):
        for row, pictures in enumerate((images, reconstructions)):
            axes = grid[row][column]
            axes.imshow(_displayable(pictures[column]), cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        grid[0][column].set_title(f"{scores.score[column]:.0f} nats\np {scores.p_value[column]:.2g}", fontsize=8)
    grid[0][0].set_ylabel("input")
    grid[1][0].set_ylabel("reconstruction")
    figure.suptitle(title)
    figure.savefig(path, dpi=DPI)
    return path


def attribution_bars(path: Path, attributions: Sequence[Sequence[Attribution]], names: Sequence[str]) -> Path:
    """Draw each row's top features by their excess, in nats, a panel a row; return `path`."""
    figure = Figure(figsize=(3.4 * len(attributions), 2.6), layout="constrained")
    panels = figure.subplots(1, len(attributions), squeeze=False)[0]
    for axes, row, name in zip(panels, attributions, names, strict=True):
        axes.barh([a.feature for a in row][::-1], [a.excess for a in row][::-1], color=ANOMALOUS)
        axes.set(xlabel="excess over normal rows (nats)", title=name)
    figure.savefig(path, dpi=DPI)
    return path


def _displayable(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return [channels, height, width] as what imshow takes: grey, or with channels last."""
    return image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
