"""Pictures of a sweep."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.patches import Circle

from vaeserve_training.report.picture import Picture, picture
from vaeserve_training.report.style import (
    ANOMALOUS,
    DASHES,
    FAINT,
    INK,
    MARKERS,
    MUTED,
    NORMAL,
    SEQUENCE,
    SERIES,
    WIDTH,
    blank,
    legend_above,
    nats,
    panel,
    styled,
)
from vaeserve_training.sweep.shown import Shown
from vaeserve_training.sweep.sweep import Entry, Sweep
from vaeserve_training.sweep.tiles import Tiles, draw_plane

# Posteriors drawn as ellipses, of one standard deviation.
ELLIPSES = 40
# What the words beside tiles take of a picture's width, in CSS pixels.
LABELS = 112
# Where the colours of a distance end.
FARTHEST = 2.0
DISTANCE = "distance to rows (held-out: 1)"


@styled
def rows_of(entry: Entry, tiles: Tiles) -> Picture:
    """Draw rows, their reconstructions, samples, and the way from one row to another."""
    shown = entry.shown
    blocks = {
        "rows": shown.rows,
        "reconstructed": shown.reconstructions,
        "samples": shown.samples,
        "between": shown.path,
    }
    heights = [tiles.height(points, WIDTH - LABELS) for points in blocks.values()]
    figure = blank(height=sum(heights) + 14 * len(blocks) + (0 if tiles.images else 50))
    panels = figure.subplots(len(blocks), 1, height_ratios=heights)
    for axes, (label, points) in zip(panels, blocks.items(), strict=True):
        drawn = tiles.draw(axes, points, label)
    if not tiles.images:
        panels[-1].set_xlabel("columns")
        figure.colorbar(drawn, ax=panels, location="bottom", label="standard deviations from the mean", aspect=30)
    alt = (
        f"{entry.case}: held-out rows, what the model rebuilds of them, samples decoded from the prior, and what lies "
        f"between the codes of the first two rows. Reconstruction error {entry['reconstruction_error']:.3g}, sample "
        f"quality {entry['sample_quality']:.2f}."
    )
    return picture(figure, _name(entry, "rows"), alt=alt)


@styled
def latents_of(entry: Entry) -> Picture:
    """Draw held-out rows' codes over the prior, some with their posteriors' width."""
    shown = entry.shown
    figure, axes = panel(height=WIDTH - 20)
    _prior(axes)
    reach = 1.05 * max(3.0, float(np.quantile(np.abs(shown.codes), 0.995)))
    # The few beyond would be cut off, and be there all the same.
    near = shown.anomalous[(np.abs(shown.anomalous) < reach).all(1)]
    inside = (np.abs(shown.codes) + shown.deviations < reach).all(1)
    codes, widths = shown.codes[inside], 2 * shown.deviations[inside][:ELLIPSES]
    if len(near):
        axes.plot(*near.T, "^", color=ANOMALOUS, markersize=3, alpha=0.7, label="anomalous")
    axes.plot(*codes.T, "o", color=NORMAL, markersize=2.5, alpha=0.7, label="held-out")
    ellipses = EllipseCollection(
        widths[:, 0], widths[:, 1], np.zeros(len(widths)), units="xy", offsets=codes[:ELLIPSES],
        offset_transform=axes.transData, facecolors="none", edgecolors=NORMAL, linewidths=0.7,
    )  # fmt: skip
    axes.add_collection(ellipses)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="latent 1", ylabel="latent 2")
    if entry.figures.measurement.latent_dim > 2:
        axes.set(xlabel="principal latent direction 1", ylabel="principal latent direction 2")
    legend_above(axes, columns=3)
    units = entry["active_units"]
    alt = f"{entry.case}: the codes of held-out rows in the latent space, over circles of N(0, I)"
    alt += "." if units is None else f"; {units} of {entry.figures.measurement.latent_dim} units are active."
    return picture(figure, _name(entry, "latents"), alt=alt)


@styled
def rate_distortion(sweep: Sweep) -> Picture:
    """Draw distortion, minus the log-likelihood, over rate, the KL.

    Source: Alemi et al., Fixing a Broken ELBO, 2018, section 3.
    """
    entries = sweep.weightings
    rates = [_value(entry, "kl") for entry in entries]
    distortions = [-_value(entry, "log_likelihood") for entry in entries]
    figure, axes = panel(height=290)
    best = max(entries, key=lambda entry: _value(entry, "elbo"))
    ends = np.array([0, max(rates)])
    axes.plot(ends, -_value(best, "elbo") - ends, color=MUTED, linestyle=":", label=f"ELBO of {best.case}")
    axes.plot(rates, distortions, color=NORMAL, marker="o", markersize=6)
    for entry, rate, distortion in zip(entries, rates, distortions, strict=True):
        axes.annotate(f"{entry.case.beta:g}", (rate, distortion), xytext=(5, 6), textcoords="offset points", color=INK)
    low, high = min(distortions), max(distortions)
    margin = 0.12 * (high - low or 1)
    axes.set(xlabel=nats("rate: KL"), ylabel=nats("distortion"), ylim=(low - margin, high + margin))
    axes.margins(x=0.08)
    legend_above(axes)
    alt = "Rate against distortion, nats a row: " + "; ".join(
        f"{entry.case} {rate:.1f} and {distortion:.1f}"
        for entry, rate, distortion in zip(entries, rates, distortions, strict=True)
    )
    return picture(figure, "rate-distortion", alt=alt + ".")


@styled
def shares(sweep: Sweep) -> Picture:
    """Draw what lies between 0 and 1 over the weightings."""
    curves = {"explained": "variance explained", "overlap": "overlap", "sample_quality": "sample quality"}
    if any(entry["auroc"] is not None for entry in sweep.weightings):
        curves["auroc"] = "AUROC"
    return _curves(sweep, curves, name="shares", ylabel="share", ylim=(-0.03, 1.03))


@styled
def three_effects(sweep: Sweep) -> Picture:
    """Draw how far off the codes' centre lies, how wide they spread, and how much posteriors overlap."""
    curves = {"centre": "centre's distance", "spread": "spread", "overlap": "overlap"}
    return _curves(sweep, curves, name="effects", ylabel="prior's deviations; share")


@styled
def divergences(sweep: Sweep) -> Picture:
    """Draw the KL and the emptiness over the weightings."""
    curves = {"kl": "KL", "emptiness": "emptiness"}
    most = max(_value(entry, name) for entry in sweep.weightings for name in curves)
    return _curves(sweep, curves, name="nats", ylabel="nats", yscale="symlog", ylim=(-0.3, 2 * max(1.0, most)))


@styled
def ways(entries: Sequence[Entry]) -> Picture:
    """Draw how far from the rows straight ways between codes lead."""
    figure, axes = panel(height=270)
    steps = np.linspace(0, 1, entries[0].shown.way_remoteness.shape[1])
    for entry, colour, dash in zip(entries, SERIES, DASHES, strict=False):
        low, middle, high = entry.shown.way_remoteness
        axes.plot(steps, middle, color=colour, linestyle=dash, label=str(entry.case))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(1, color=MUTED, linewidth=0.8)
    axes.set(xlabel="share of the way from one row's code to another's", ylabel=DISTANCE, ylim=(0, None))
    legend_above(axes)
    alt = "Distance from training rows along straight ways between codes, as multiples of held-out rows': " + "; ".join(
        f"{entry.case} {entry.shown.way_remoteness[1].max():.2f} at the farthest" for entry in entries
    )
    return picture(figure, "ways", alt=f"{alt}, medians.")


@styled
def plane_of(entry: Entry) -> Picture:
    """Draw how far from the rows lies what is decoded anywhere in the latent plane."""
    shown = entry.shown
    figure, axes = panel(height=WIDTH - 60)
    drawn = axes.imshow(
        shown.plane_remoteness, extent=_extent(shown), origin="lower", aspect="auto", cmap=SEQUENCE, vmin=0.5,
        vmax=FARTHEST,
    )  # fmt: skip
    axes.plot(*shown.codes.T, ".", color=FAINT, markersize=2)
    axes.grid(visible=False)
    _label(axes, shown)
    figure.colorbar(drawn, ax=axes, label=DISTANCE, extend="max")
    worst = float(np.mean(shown.plane_remoteness > FARTHEST))
    alt = (
        f"{entry.case}: the latent plane, coloured by how far what is decoded there lies from training rows, with held-"
        f"out rows' codes; {worst:.0%} of it is more than {FARTHEST:g} times as far as held-out rows are."
    )
    return picture(figure, _name(entry, "plane"), alt=alt)


@styled
def decoded_plane(entry: Entry, tiles: Tiles) -> Picture:
    """Draw images decoded on a grid of the latent plane."""
    figure, axes = panel(height=WIDTH - 20)
    draw_plane(axes, tiles, entry.shown.plane, _extent(entry.shown))
    _label(axes, entry.shown)
    return picture(figure, _name(entry, "grid"), alt=f"{entry.case}: images decoded on a grid of the latent plane.")


def _curves(sweep: Sweep, curves: dict[str, str], *, name: str, ylabel: str, **settings: object) -> Picture:
    """Draw figures over the weightings, which stand evenly apart."""
    figure, axes = panel(height=280)
    places = range(len(sweep.weightings))
    said = []
    for (figure_name, label), colour, dash, marker in zip(curves.items(), SERIES, DASHES, MARKERS, strict=False):
        values = [_value(entry, figure_name) for entry in sweep.weightings]
        axes.plot(places, values, color=colour, linestyle=dash, marker=marker, label=label)
        said.append(f"{label} " + ", ".join(f"{value:.3g}" for value in values))
    axes.set(xlabel="beta, the weight of the KL", ylabel=ylabel, xticks=list(places), **settings)
    axes.set_xticklabels([f"{entry.case.beta:g}" for entry in sweep.weightings])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    legend_above(axes)
    betas = ", ".join(f"{entry.case.beta:g}" for entry in sweep.weightings)
    return picture(figure, name, alt=f"For beta {betas}: {'; '.join(said)}.")


def _name(entry: Entry, what: str) -> str:
    """Return a picture's name, which is a part of addresses."""
    return f"{entry.case.name.replace('.', '-')}-{what}"


def _prior(axes: Axes) -> None:
    for radius in (1, 2):
        axes.add_patch(Circle((0, 0), radius, fill=False, color=MUTED, linestyle="--", linewidth=1))
    axes.plot([], [], color=MUTED, linestyle="--", linewidth=1, label="prior")


def _extent(shown: Shown) -> tuple[float, float, float, float]:
    (left, right), (bottom, top) = shown.extent.tolist()
    return left, right, bottom, top


def _label(axes: Axes, shown: Shown) -> None:
    left, right, bottom, top = _extent(shown)
    axes.set(xlabel="direction 1", ylabel="direction 2", xlim=(left, right), ylim=(bottom, top))


def _value(entry: Entry, name: str) -> float:
    value = entry[name]
    return float("nan") if value is None else value
