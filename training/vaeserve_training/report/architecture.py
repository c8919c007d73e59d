"""A network's layers with their shapes, as its modules have them when a row goes through."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaeserve_training.networks import Crop, Residual


class Layer(NamedTuple):
    """A layer: what it is, the shape of a row behind it, and how many numbers it learned."""

    what: str
    shape: tuple[int, ...]
    parameters: int = 0


@dataclass(frozen=True)
class Stack:
    """Layers that follow each other, the first being what goes in."""

    name: str
    layers: Sequence[Layer]

    @property
    def parameters(self) -> int:
        """How many numbers the layers learned."""
        return sum(layer.parameters for layer in self.layers)


def layers_of(network: nn.Module, row: Tensor) -> list[Layer]:
    """Return the layers that `row` [1, inputs] goes through, in order; what learns nothing is said with them."""
    seen: list[Layer] = []

    def note(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        parameters = sum(parameter.numel() for parameter in module.parameters())
        layer = Layer(_said(module), tuple(output.shape[1:]), parameters)
        if parameters or not seen:
            seen.append(layer)
        else:
            seen[-1] = Layer(f"{seen[-1].what}, {layer.what}", layer.shape, seen[-1].parameters)

    handles = [module.register_forward_hook(note) for module in _units(network)]
    try:
        with torch.no_grad():
            network(row)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _units(module: nn.Module) -> list[nn.Module]:
    """Return the modules that a drawing shows as one each."""
    if isinstance(module, Residual) or not list(module.children()):
        return [module]
    return [unit for child in module.children() for unit in _units(child)]


def _said(module: nn.Module) -> str:
    name = type(module).__name__
    if isinstance(module, Residual):
        return f"residual block of {', '.join(_said(child) for child in module.branch)}"
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        side, stride = module.kernel_size[0], module.stride[0]
        return f"{name} {side}x{side}" + (f", stride {stride}" if stride != 1 else "")
    if isinstance(module, Crop):
        return f"crop to {module.height} x {module.width}"
    return name
