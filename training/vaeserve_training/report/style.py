"""How pictures look: colours by what they mean, one width, text that can be read on a telephone.

A picture is as wide as a telephone's screen; on a wide one several stand beside each other, so that text keeps its
size. It is drawn in the light colours; on a page and in an SVG file each is a CSS variable, which has a dark value too.
"""

from typing import Any, NamedTuple

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# CSS pixels, and the units of a picture's coordinates.
WIDTH = 360
HEIGHT = 250
UNITS_PER_INCH = 72


class Colour(NamedTuple):
    """What a colour is in light and in dark."""

    light: str
    dark: str


# Told apart by who doesn't see red or green (after Okabe and Ito), and in grey by their lightness. The light ones are
# all different, for a picture's colours are found by them.
COLOURS = {
    "paper": Colour("#fefefe", "#15171b"),
    "ink": Colour("#1b1f24", "#e6e8eb"),
    "muted": Colour("#5a636e", "#a4adb8"),
    "faint": Colour("#d8dce1", "#3a4049"),
    "normal": Colour("#0f4c8a", "#6ba7ea"),
    "anomalous": Colour("#d55e00", "#ffbe6b"),
    "third": Colour("#1a9276", "#3ecfa8"),
    "fourth": Colour("#b0679a", "#e3a0d0"),
    "fifth": Colour("#4ea6dc", "#a9dcff"),
}
PAPER, INK, MUTED, FAINT, NORMAL, ANOMALOUS, THIRD, FOURTH, FIFTH = (colour.light for colour in COLOURS.values())
# For several of a kind. Lines differ in how they are dashed too, so that none is known by its colour alone.
SERIES = (NORMAL, ANOMALOUS, THIRD, FOURTH, FIFTH)
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "^", "s", "D", "v")
# Of numbers: its lightness only rises, and colour-blind people see it as others do.
SEQUENCE = "cividis"
# A browser's own; matplotlib lays text out by DejaVu Sans, which is wider, so that it fits.
FONT = "system-ui, 'DejaVu Sans', sans-serif"

# matplotlib's settings while one of our pictures is made, and no others'.
SETTINGS: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 12,
    "axes.prop_cycle": cycler(color=SERIES) + cycler(linestyle=DASHES),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 12,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "image.cmap": SEQUENCE,
    "image.interpolation": "nearest",
    "legend.edgecolor": FAINT,
    "legend.facecolor": PAPER,
    "legend.fontsize": 11,
    "legend.framealpha": 0.85,
    "legend.handlelength": 1.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "vaeserve",  # the same picture has the same bytes
    "svg.image_inline": True,
    "text.color": INK,
    "text.parse_math": False,  # a dollar in a column's name is one
    "xtick.color": MUTED,
    "xtick.labelsize": 11,
    "ytick.color": MUTED,
    "ytick.labelsize": 11,
}

# A decorator for functions that make pictures. As a context it serves once.
styled = mpl.rc_context(SETTINGS)


def panel(*, height: float = HEIGHT, width: float = WIDTH) -> tuple[Figure, Axes]:
    """Return a figure of a size in CSS pixels, with one pair of axes."""
    figure = blank(height=height, width=width)
    return figure, figure.subplots()


def blank(*, height: float = HEIGHT, width: float = WIDTH, arranged: bool = True) -> Figure:
    """Return a figure of a size in CSS pixels, without axes; those to come are arranged, or stay as they are put."""
    size = width / UNITS_PER_INCH, height / UNITS_PER_INCH
    return Figure(figsize=size, layout="constrained" if arranged else None)


def nats(what: str) -> str:
    """Return an axis label with its unit."""
    return f"{what} (nats)"


def head(figure: Figure, title: str) -> None:
    """Put a title over all else."""
    figure.suptitle(title, x=0.01, ha="left", size=12, weight="bold")


def legend_above(axes: Axes, *, columns: int = 2) -> None:
    """Put the legend over the axes, where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=columns, frameon=False, borderaxespad=0.2)


def variables(*, dark: bool) -> str:
    """Return the colours as CSS declarations."""
    return " ".join(f"--{name}: {colour.dark if dark else colour.light};" for name, colour in COLOURS.items())
