"""Pictures of images: strips of tiles, their edges sharp, each row of them named."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from vaeserve_training.report.picture import Picture, picture
from vaeserve_training.report.style import MUTED, SEQUENCE, WIDTH, blank, styled

Images = NDArray[np.uint8]
# Pixels of a tile: small images are enlarged by whole numbers, large ones shrunk.
TILE = 96
_GAP = 3
_WHITE = 255


@styled
def strips(rows: Sequence[tuple[str, Images]], name: str, *, alt: str, above: Sequence[str] = ()) -> Picture:
    """Draw rows of images, each a name and colours [images, height, width, 3].

    above: what stands over each column.
    """
    count = max(len(images) for _, images in rows)
    tiles = [[tile(image) for image in images] for _, images in rows]
    height, width = tiles[0][0].shape[:2]
    left = 0 if all(not label for label, _ in rows) else 92
    size = (WIDTH - left - _GAP * (count - 1)) / count
    tall = size * height / width
    top = 18 if any(above) else 2
    total = top + len(rows) * (tall + _GAP)
    figure = blank(height=total, arranged=False)
    for at, ((label, _), line) in enumerate(zip(rows, tiles, strict=True)):
        y = total - top - (at + 1) * tall - at * _GAP
        if label:
            figure.text(0, (y + tall / 2) / total, label, va="center", size=10.5)
        for column, pixels in enumerate(line):
            _place(figure, pixels, (left + column * (size + _GAP), y, size, tall), total)
    for column, said in enumerate(above):
        x = (left + column * (size + _GAP) + size / 2) / WIDTH
        figure.text(x, 1 - 12 / total, said, ha="center", size=9, color=MUTED)
    return picture(figure, name, alt=alt)


def _place(figure: Figure, pixels: Images, box: tuple[float, float, float, float], total: float) -> None:
    left, bottom, width, height = box
    axes = figure.add_axes((left / WIDTH, bottom / total, width / WIDTH, height / total))
    axes.imshow(pixels, interpolation="none", aspect="auto")
    axes.axis("off")


def tile(colours: Images) -> Images:
    """Return an image [height, width, 3] at the size of a tile."""
    longest = max(colours.shape[:2])
    if longest >= TILE:
        height, width = (max(1, round(side * TILE / longest)) for side in colours.shape[:2])
        return np.asarray(Image.fromarray(colours).resize((width, height), Image.Resampling.BOX))
    factor = TILE // longest
    return colours.repeat(factor, axis=0).repeat(factor, axis=1)


def colours_of(images: NDArray[np.uint8]) -> Images:
    """Return images [images, channels, height, width] as [images, height, width, 3].

    One channel is grey, three are colours; of another number the first stands for all.
    """
    chosen = images if images.shape[1] == 3 else np.repeat(images[:, :1], 3, axis=1)
    return np.ascontiguousarray(np.moveaxis(chosen, 1, -1))


def heat(values: NDArray[np.float64], shape: tuple[int, ...]) -> Images:
    """Return pixels' values [channels * height * width], summed over channels, as colours [height, width, 3]."""
    summed = values.reshape(shape).sum(0)
    largest = max(float(summed.max()), 1e-9)
    colours = colormaps[SEQUENCE](np.clip(summed / largest, 0, 1))[..., :3]
    return np.asarray((colours * _WHITE).round(), np.uint8)
