"""MNIST and FashionMNIST, from their idx files."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from vaeserve.source import open_source
from vaeserve_training.data import Dataset, load_dataset


def read(folder: Path, part: Literal["train", "t10k"]) -> Dataset:
    """Read a set's training or test images, uint8 [images, 1, 28, 28]."""
    return load_dataset(open_source(str(folder / f"{part}-images-idx3-ubyte.gz")))


def with_pixels(dataset: Dataset, pixels: NDArray[Any]) -> Dataset:
    """Return as many other images, uint8 of the same shape."""
    return replace(dataset, arrays={"image": pixels}, rows=None)
