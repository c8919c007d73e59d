"""Pictures of what a model is and how it was trained."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from vaeserve_training.report.architecture import Layer, Stack
from vaeserve_training.report.picture import Picture, picture
from vaeserve_training.report.style import (
    ANOMALOUS,
    FAINT,
    MUTED,
    NORMAL,
    WIDTH,
    blank,
    legend_above,
    nats,
    panel,
    styled,
)
from vaeserve_training.report.words import shaped, short

# Units of a picture's coordinates.
_BOX, _GAP = 36, 10
_NARROWEST = 0.5
# Of a letter.
_LETTER = 6.0
# Evaluations of the first part of training lie so far off that they would flatten all others.
_FLATTENED = 0.1


@styled
def architecture(stack: Stack, name: str) -> Picture:
    """Draw a stack's layers below each other, as wide as they have numbers."""
    height = len(stack.layers) * (_BOX + _GAP) + 24
    figure = blank(height=height, arranged=False)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    axes.text(WIDTH / 2, 13, stack.name, ha="center", va="center", weight="bold")
    sizes = np.log([float(np.prod(layer.shape)) + 1 for layer in stack.layers])
    shares = _NARROWEST + (1 - _NARROWEST) * (sizes - sizes.min()) / max(float(np.ptp(sizes)), 1e-9)
    for index, (layer, share) in enumerate(zip(stack.layers, shares, strict=True)):
        _box(axes, layer, top=24 + index * (_BOX + _GAP), width=float(share) * (WIDTH - 8))
        if index:
            axes.plot(
                [WIDTH / 2] * 2, [24 + index * (_BOX + _GAP) - _GAP, 24 + index * (_BOX + _GAP)], "-", color=MUTED
            )
    said = "; ".join(f"{layer.what} {shaped(layer.shape)}" for layer in stack.layers)
    return picture(figure, name, alt=f"The layers of the {stack.name}, each with its shape: {said}.")


def _box(axes: Axes, layer: Layer, *, top: float, width: float) -> None:
    widest, learned = WIDTH - 8, layer.parameters > 0
    what = short(layer.what, int(widest / _LETTER) - 2)
    width = max(width, (len(what) + 2) * _LETTER)
    left = (WIDTH - width) / 2
    box = FancyBboxPatch(
        (left, top), width, _BOX, boxstyle="round,pad=0,rounding_size=5",
        facecolor=NORMAL if learned else FAINT, alpha=0.16 if learned else 0.55, edgecolor="none",
    )  # fmt: skip
    axes.add_patch(box)
    shape = shaped(layer.shape) + (f"  ·  {layer.parameters:,} weights" if learned else "")
    axes.text(WIDTH / 2, top + 12, what, ha="center", va="center", size=10.5)
    axes.text(WIDTH / 2, top + 26, shape, ha="center", va="center", size=10, color=MUTED)


@styled
def over_training(
    evaluations: Sequence[Mapping[str, Any]], names: Mapping[str, str], name: str, *, title: str, best: int | None
) -> Picture:
    """Draw some of the evaluations' figures by their step, and where the model kept was; names: field to label."""
    figure, axes = panel()
    steps = [entry["step"] for entry in evaluations]
    series = {label: np.array([entry[field] for entry in evaluations], float) for field, label in names.items()}
    colours = (NORMAL, ANOMALOUS)
    for (label, values), colour, dash in zip(series.items(), colours, ("-", "--"), strict=False):
        axes.plot(steps, values, dash, color=colour, label=label, marker="o", markersize=3)
    if best is not None:
        axes.axvline(best, color=MUTED, linewidth=1, linestyle=":", label=f"kept: step {best:,}")
    _without_the_flattening(axes, np.concatenate(list(series.values())))
    axes.set(xlabel="step", ylabel=nats(title) if title else "", xlim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    legend_above(axes)
    ends = "; ".join(f"{label} from {values[0]:.4g} to {values[-1]:.4g}" for label, values in series.items())
    return picture(figure, name, alt=f"{title} over {steps[-1]:,} steps of training, in nats: {ends}.")


def _without_the_flattening(axes: Axes, values: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """Leave the worst values out of the axes where they would flatten all others."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    low, high = np.quantile(values, _FLATTENED), values.max()
    margin = 0.6 * max(float(high - low), 1e-3)
    if values.min() < low - 2 * margin:
        axes.set_ylim(low - margin, high + 0.15 * margin)


@styled
def usage_over_training(evaluations: Sequence[Mapping[str, Any]], name: str, *, latent_dim: int) -> Picture:
    """Draw how many latent dimensions were active at each evaluation."""
    figure, axes = panel()
    steps = [entry["step"] for entry in evaluations]
    active = [entry["active_units"] for entry in evaluations]
    axes.plot(steps, active, color=NORMAL, marker="o", markersize=3, label="active dimensions")
    axes.axhline(latent_dim, color=MUTED, linewidth=1, linestyle=":", label=f"there are {latent_dim}")
    axes.set(xlabel="step", ylabel="latent dimensions", xlim=(0, None), ylim=(0, latent_dim * 1.08))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    legend_above(axes)
    alt = f"Active latent dimensions over training: {active[0]} at first, {active[-1]} of {latent_dim} in the end."
    return picture(figure, name, alt=alt)
