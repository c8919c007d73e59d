"""Pictures of the latent space."""

from typing import Any

import numpy as np
from matplotlib.patches import Circle
from numpy.typing import NDArray
from scipy.stats import norm

from vaeserve_training.report.latents import Latents, Plane, prior_radius
from vaeserve_training.report.picture import Picture, picture
from vaeserve_training.report.style import (
    ANOMALOUS,
    HEIGHT,
    INK,
    MUTED,
    NORMAL,
    PAPER,
    WIDTH,
    blank,
    legend_above,
    nats,
    panel,
    styled,
)

# Dimensions that have room for a bar each, and points that have room for a dot each.
MOST_BARS = 40
MOST_POINTS = 700
PRIOR_SHARES = (0.5, 0.9, 0.99)
# The share of the points that a plane shows at least; the others lie beyond its edge.
_SHOWN = 0.995


@styled
def kl_by_dimension(latents: Latents, name: str) -> Picture:
    """Draw each dimension's KL, the largest first, collapsed ones as outlines."""
    order = np.argsort(-latents.kl, kind="stable")[:MOST_BARS]
    active = latents.active[order]
    figure, axes = panel(height=max(HEIGHT, 80 + 13 * len(order)))
    at = np.arange(len(order))
    if active.any():
        axes.barh(at[active], latents.kl[order][active], 0.72, color=NORMAL, label="active")
    if not active.all():
        axes.barh(
            at[~active], latents.kl[order][~active], 0.72, facecolor="none", edgecolor=ANOMALOUS, hatch="////",
            label="collapsed",
        )  # fmt: skip
    axes.set_yticks(at, [f"z{dimension}" for dimension in order])
    axes.tick_params("y", labelsize=10, labelcolor=INK, length=0)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=nats("KL, a mean over rows"), xlim=(0, None), ylim=(len(order) - 0.4, -0.6))
    legend_above(axes)
    alt = (
        f"KL of each latent dimension, the largest first: from {latents.kl.max():.3g} to {latents.kl.min():.3g} nats; "
        f"{int(latents.active.sum())} of {len(latents.kl)} dimensions are active."
    )
    return picture(figure, name, alt=alt)


@styled
def scatter(plane: Plane, anomalous: NDArray[np.bool_] | None, name: str, *, title: str) -> Picture:
    """Draw rows on a plane, by their label where there is one, over the prior's contours."""
    figure = blank(height=WIDTH)
    axes = figure.subplots()
    for share in PRIOR_SHARES:
        circle = Circle((plane.origin[0], plane.origin[1]), prior_radius(share), fill=False, edgecolor=MUTED)
        circle.set(linewidth=1, linestyle="--")
        axes.add_patch(circle)
        axes.annotate(
            f"{share:.0%}", (plane.origin[0], plane.origin[1] + prior_radius(share)), ha="center", va="bottom",
            size=9, color=MUTED, annotation_clip=True, zorder=3,
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )  # fmt: skip
    points, labels = _thinned(plane.points, anomalous)
    if labels is None:
        axes.plot(*points.T, "o", color=NORMAL, markersize=2.6, alpha=0.65, label="row", linestyle="none")
    else:
        axes.plot(*points[~labels].T, "o", color=NORMAL, markersize=2.6, alpha=0.65, label="normal", linestyle="none")
        axes.plot(*points[labels].T, "^", color=ANOMALOUS, markersize=4, alpha=0.8, label="anomalous", linestyle="none")
    _frame(axes, plane)
    axes.set(xlabel=plane.names[0], ylabel=plane.names[1], aspect="equal")
    axes.plot([], [], "--", color=MUTED, linewidth=1, label="prior")
    legend_above(axes, columns=3)
    inside = np.linalg.norm(plane.points - plane.origin, axis=1) <= prior_radius(PRIOR_SHARES[-1])
    alt = (
        f"{title}: {len(plane.points):,} rows as points over circles that hold 50, 90 and 99 % of the prior; "
        f"{inside.mean():.0%} of the rows lie in the largest."
    )
    return picture(figure, name, alt=alt)


def _thinned(
    points: NDArray[np.float64], anomalous: NDArray[np.bool_] | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_] | None]:
    if len(points) <= MOST_POINTS:
        return points, anomalous
    chosen = np.sort(np.random.default_rng(0).permutation(len(points))[:MOST_POINTS])
    return points[chosen], None if anomalous is None else anomalous[chosen]


def _frame(axes: Any, plane: Plane) -> None:
    """Show nearly all rows and most of the prior, on a square."""
    radius = prior_radius(PRIOR_SHARES[-1])
    beyond = (1 - _SHOWN) / 2
    low = np.minimum(np.quantile(plane.points, beyond, axis=0), plane.origin - radius)
    high = np.maximum(np.quantile(plane.points, 1 - beyond, axis=0), plane.origin + radius)
    center, half = (low + high) / 2, 0.54 * float((high - low).max())
    axes.set(xlim=center[0] + np.array([-half, half]), ylim=center[1] + np.array([-half, half]))


@styled
def marginal(latents: Latents, dimension: int, anomalous: NDArray[np.bool_] | None, name: str) -> Picture:
    """Draw the means of one dimension as a histogram over the prior's density."""
    figure, axes = panel()
    mean = latents.mean[:, dimension]
    half = max(3.5, float(np.quantile(np.abs(mean), _SHOWN)) * 1.05)
    edges = np.linspace(-half, half, 41)
    labels = np.zeros(len(mean), bool) if anomalous is None else anomalous
    clipped = np.clip(mean, -half, half)
    if not labels.all():
        said = "rows" if anomalous is None else "normal"
        axes.hist(clipped[~labels], edges.tolist(), density=True, color=NORMAL, alpha=0.75, label=said)
    if labels.any():
        axes.hist(
            clipped[labels], edges.tolist(), density=True, histtype="step", hatch="////", color=ANOMALOUS,
            linewidth=1.5, label="anomalous",
        )  # fmt: skip
    at = np.linspace(-half, half, 200)
    axes.plot(at, norm.pdf(at), "--", color=INK, linewidth=1.3, label="prior")
    axes.grid(visible=False, axis="x")
    axes.set(xlabel=f"posterior mean of z{dimension}", ylabel="density", xlim=(-half, half))
    legend_above(axes, columns=3)
    alt = (
        f"Where rows lie in latent dimension z{dimension}, beside the prior N(0, 1): mean {mean.mean():.2g}, standard "
        f"deviation {mean.std():.2g}."
    )
    return picture(figure, name, alt=alt)
