"""The layers of networks, as a row goes through them."""

import torch

from vaeserve_training.networks import decoder, encoder
from vaeserve_training.report.architecture import layers_of


def test_an_mlp_has_its_widths_and_weights() -> None:
    """Each linear layer stands with its activation, its output's shape and how many numbers it learned."""
    network = encoder("mlp", inputs=5, outputs=4, hidden=(7, 6), shape=None)
    layers = layers_of(network, torch.zeros(1, 5))
    assert [(layer.what, layer.shape, layer.parameters) for layer in layers] == [
        ("Linear, SiLU", (7,), 5 * 7 + 7),
        ("Linear, SiLU", (6,), 7 * 6 + 6),
        ("Linear", (4,), 6 * 4 + 4),
    ]


def test_every_network_is_shown_whole() -> None:
    """The layers' weights are all that the network has, and the last has the network's output."""
    for kind, shape, count in (("mlp", None, 9), ("residual", None, 9), ("conv", (1, 9, 7), 63)):
        for make, inputs, outputs in ((encoder, count, 6), (decoder, 3, count)):
            network = make(kind, inputs=inputs, outputs=outputs, hidden=(8, 4), shape=shape)  # type: ignore[arg-type]
            layers = layers_of(network, torch.zeros(1, inputs))
            assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in network.parameters()), kind
            numbers = 1
            for side in layers[-1].shape:
                numbers *= side
            assert numbers == outputs, (kind, layers[-1])


def test_drawing_leaves_a_network_as_it_was() -> None:
    """No hook stays behind."""
    network = encoder("mlp", inputs=5, outputs=4, hidden=(7,), shape=None)
    layers_of(network, torch.zeros(1, 5))
    assert not any(module._forward_hooks for module in network.modules())
