"""The encoder's and decoder's networks. None looks at other rows: no batch statistics, no dropout."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Literal

from torch import Tensor, nn

Network = Literal["mlp", "residual", "conv"]
# Channels, height, width.
Shape = tuple[int, int, int]
# The side of an image that a convolutional network goes down to, at most, before its linear layer.
SMALLEST_SIDE = 7


def encoder(kind: Network, *, inputs: int, outputs: int, hidden: Sequence[int], shape: Shape | None) -> nn.Module:
    """Return a network from rows [..., inputs] to [..., outputs].

    hidden: the layers' widths, input first; of "residual" the blocks', of "conv" the stages' channels.
    shape: of the image that a row is, for "conv".
    """
    if kind == "conv":
        return ConvEncoder(_image(shape, inputs), outputs=outputs, hidden=hidden)
    if kind == "residual":
        return ResidualMLP(inputs, outputs, hidden=hidden)
    return mlp([inputs, *hidden, outputs])


def decoder(kind: Network, *, inputs: int, outputs: int, hidden: Sequence[int], shape: Shape | None) -> nn.Module:
    """Return a network from latents [..., inputs] to [..., outputs], the mirror of `encoder` with the same `hidden`.

    shape: of the image that a row is, for "conv".
    """
    if kind == "conv":
        return ConvDecoder(_image(shape, outputs), inputs=inputs, hidden=hidden)
    mirrored = [*reversed(hidden)]
    if kind == "residual":
        return ResidualMLP(inputs, outputs, hidden=mirrored)
    return mlp([inputs, *mirrored, outputs])


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Return linear layers of the given widths, input first, with SiLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """`h + branch(h)`. Source: He et al., Identity Mappings in Deep Residual Networks, 2016, figure 1b."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, h: Tensor) -> Tensor:
        """Return `h` and what the branch adds to it, in the shape of `h`."""
        change: Tensor = self.branch(h)
        return h + change


class ResidualMLP(nn.Sequential):
    """A linear layer in, a residual block of each width in `hidden` on a trunk as wide as the widest, one out."""

    def __init__(self, inputs: int, outputs: int, *, hidden: Sequence[int]) -> None:
        trunk = max(hidden)
        blocks = [
            Residual(nn.LayerNorm(trunk), nn.Linear(trunk, width), nn.SiLU(), nn.Linear(width, trunk))
            for width in hidden
        ]
        super().__init__(nn.Linear(inputs, trunk), *blocks, nn.SiLU(), nn.Linear(trunk, outputs))


class ConvEncoder(nn.Module):
    """Stages that each halve the image and add a residual block, then a linear layer.

    The last width is repeated until neither side is longer than `SMALLEST_SIDE`.
    """

    def __init__(self, shape: Shape, *, outputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.shape, self.outputs = shape, outputs
        channels = [shape[0], *_stages(shape, hidden)]
        stages = [
            nn.Sequential(nn.Conv2d(above, width, 3, stride=2, padding=1), _conv_block(width))
            for above, width in pairwise(channels)
        ]
        height, width = _sides(shape, len(stages))[-1]
        self.stages = nn.Sequential(*stages, nn.SiLU())
        self.out = nn.Linear(channels[-1] * height * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs [..., outputs] for images `x` [..., channels * height * width]."""
        h = self.stages(x.reshape(-1, *self.shape))  # (rows, channels, height, width)
        out: Tensor = self.out(h.flatten(1))  # (rows, outputs)
        return out.reshape(*x.shape[:-1], self.outputs)


class ConvDecoder(nn.Module):
    """ConvEncoder's mirror: a linear layer, then stages of a residual block and a doubling, cropped where too large."""

    def __init__(self, shape: Shape, *, inputs: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.shape = shape
        widths = [*reversed(_stages(shape, hidden))]
        smallest, *sides = reversed(_sides(shape, len(widths)))
        self.start = (widths[0], *smallest)
        self.into = nn.Linear(inputs, prod(self.start))
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    _conv_block(width),
                    nn.SiLU(),
                    nn.ConvTranspose2d(width, below, 4, stride=2, padding=1),
                    Crop(*side),
                )
                for (width, below), side in zip(pairwise([*widths, shape[0]]), sides, strict=True)
            )
        )

    def forward(self, z: Tensor) -> Tensor:
        """Return images [..., channels * height * width] for latents `z` [..., inputs]."""
        h = self.into(z.reshape(-1, z.shape[-1])).reshape(-1, *self.start)  # (rows, channels, height, width)
        image: Tensor = self.stages(h)  # (rows, *shape)
        return image.reshape(*z.shape[:-1], prod(self.shape))


class Crop(nn.Module):
    """The top left `height` x `width` of images, for a doubled odd side is one too long."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, h: Tensor) -> Tensor:
        """Return `h` [rows, channels, at least height, at least width], cropped."""
        return h[..., : self.height, : self.width]


def _conv_block(width: int) -> Residual:
    convolutions = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
    return Residual(*(layer for convolution in convolutions for layer in (nn.SiLU(), convolution)))


def _stages(shape: Shape, hidden: Sequence[int]) -> list[int]:
    """Return each stage's channels."""
    stages = [*hidden]
    while max(_sides(shape, len(stages))[-1]) > SMALLEST_SIDE:
        stages.append(stages[-1])
    return stages


def _sides(shape: Shape, stages: int) -> list[tuple[int, int]]:
    """Return height and width before the first stage and after each."""
    sides = [shape[1:]]
    for _ in range(stages):
        height, width = sides[-1]
        sides.append(((height + 1) // 2, (width + 1) // 2))
    return sides


def _image(shape: Shape | None, size: int) -> Shape:
    """Return `shape` with as many channels as make `size` numbers a row."""
    if shape is None or min(shape[1:]) < 4 or size % prod(shape[1:]):
        raise ValueError(f"network conv: {size} numbers a row of shape {shape}; expected an image of 4 x 4 or more")
    return (size // prod(shape[1:]), *shape[1:])
