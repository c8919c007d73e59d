"""Rows as a person looks at them: images as images, and a table's rows as strips of coloured cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from vaeserve.signature import Signature
from vaeserve_training.report.style import MUTED, SEQUENCE

# Standard deviations at which a strip's colours end.
DEVIATIONS = 3.0
# The share of an image's width that is left between two.
GAP = 0.12

Points = NDArray[np.float32]


class Tiles:
    """Draws points of a `Space` [..., width] of rows of a signature."""

    def __init__(self, signature: Signature) -> None:
        self.shape = None if signature.columns else signature.inputs[0].shape[1:]

    @property
    def images(self) -> bool:
        """Whether rows are images."""
        return self.shape is not None

    def height(self, points: Points, width: float) -> float:
        """Return how high a block of `points` [rows, width] is if it is `width` wide, in the same unit."""
        if self.shape is None:
            return 9.0 * len(points)
        return width / len(points) * self.shape[1] / self.shape[2]

    def draw(self, axes: Axes, points: Points, label: str) -> Any:
        """Draw rows [rows, width] side by side, a table's one below the other; return what a colour bar tells of."""
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_ylabel(label, rotation=0, ha="right", va="center", color=MUTED)
        if self.shape is None:
            return axes.imshow(
                points, aspect="auto", cmap=SEQUENCE, vmin=-DEVIATIONS, vmax=DEVIATIONS, interpolation="none"
            )
        return axes.imshow(_colours(self.mosaic(points[None])), aspect="equal", interpolation="none")

    def mosaic(self, points: Points) -> Points:
        """Return images [rows, columns, width] as one, [height, width, channels], with gaps that are no number."""
        assert self.shape is not None  # noqa: S101 - of images
        channels, height, width = self.shape
        gap = max(1, round(GAP * width))
        images = points.reshape(*points.shape[:2], channels, height, width)
        spaced = np.pad(images, [(0, 0), (0, 0), (0, 0), (0, gap), (0, gap)], constant_values=np.nan)
        joined = np.moveaxis(spaced, 2, -1).swapaxes(1, 2)  # (rows, height, columns, width, channels)
        return joined.reshape(len(points) * (height + gap), -1, channels)[:-gap, :-gap]


def _colours(mosaic: Points) -> Points:
    """Return [height, width, channels] intensities as red, green, blue and opacity; gaps are clear."""
    channels = mosaic.shape[2]
    colours = mosaic if channels == 3 else np.repeat(mosaic[:, :, :1], 3, axis=2)
    opacity = np.isfinite(mosaic[:, :, :1]).astype(np.float32)
    return np.concatenate([np.nan_to_num(colours).clip(0, 1), opacity], axis=2)


def draw_plane(axes: Axes, tiles: Tiles, plane: Points, extent: Sequence[float]) -> None:
    """Draw images decoded at cells of a plane, [cells, cells, width], where they lie in it."""
    axes.imshow(_colours(tiles.mosaic(plane[::-1])), extent=tuple(extent), aspect="auto", interpolation="none")  # type: ignore[arg-type]
    axes.grid(visible=False)
