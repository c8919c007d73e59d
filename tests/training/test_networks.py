"""The networks' shapes, and that they look at one row at a time."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vaeserve_training.networks import (
    SMALLEST_SIDE,
    ConvEncoder,
    Network,
    ResidualMLP,
    Shape,
    decoder,
    encoder,
    mlp,
)

KINDS: list[Network] = ["mlp", "residual", "conv"]
SHAPE = (2, 5, 9)
SIZE = math.prod(SHAPE)


def pair(kind: Network, *, hidden: tuple[int, ...] = (6, 10), shape: Shape = SHAPE) -> tuple[nn.Module, nn.Module]:
    """Return an encoder to 4 numbers and a decoder from 3, in double precision."""
    size = math.prod(shape)
    return (
        encoder(kind, inputs=size, outputs=4, hidden=hidden, shape=shape).double(),
        decoder(kind, inputs=3, outputs=size, hidden=hidden, shape=shape).double(),
    )


def test_mlp_has_silu_between_its_layers() -> None:
    """Widths make one layer less than there are, and the last has no nonlinearity."""
    assert [type(layer) for layer in mlp([3, 5, 2])] == [nn.Linear, nn.SiLU, nn.Linear]


def test_the_decoder_mirrors_the_encoder() -> None:
    """A decoder's layers have the encoder's widths in reverse."""
    made = [
        [tuple(layer.weight.shape) for layer in network.modules() if isinstance(layer, nn.Linear)]
        for network in pair("mlp")
    ]
    assert made == [[(6, SIZE), (10, 6), (4, 10)], [(10, 3), (6, 10), (SIZE, 6)]]


@pytest.mark.parametrize("kind", KINDS)
def test_leading_axes_are_kept(kind: Network) -> None:
    """Rows and samples come back as they were, none too, each as if it were alone."""
    both = pair(kind)
    for network, inputs, outputs in zip(both, (SIZE, 3), (4, SIZE), strict=True):
        x = torch.randn(3, 2, inputs, dtype=torch.float64)
        together = network(x)
        assert together.shape == (3, 2, outputs)
        torch.testing.assert_close(together[1, 1], network(x[1, 1]))
        torch.testing.assert_close(together[2:], network(x[2:]))
        assert network(x[:0]).shape == (0, 2, outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_an_ensembles_networks_run_under_vmap(kind: Network) -> None:
    """Stacked members give by vmap what each gives alone."""
    for index, inputs in ((0, SIZE), (1, 3)):
        members = [pair(kind)[index] for _ in range(3)]
        state = torch.func.stack_module_state(members)
        x = torch.randn(5, 2, inputs, dtype=torch.float64)

        def run(
            parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor, member: nn.Module = members[0]
        ) -> Tensor:
            output: Tensor = torch.func.functional_call(member, (parameters, buffers), (x,))
            return output

        together = torch.func.vmap(run, in_dims=(0, 0, None))(*state, x)
        torch.testing.assert_close(together, torch.stack([member(x) for member in members]))


def test_a_residual_block_adds_to_what_it_is_given() -> None:
    """Blocks whose last layers are zero leave the trunk as it is."""
    network = ResidualMLP(5, 2, hidden=(3, 7))
    for layer in network.modules():
        if isinstance(layer, nn.Linear) and layer.out_features == 7 and layer.in_features in (3, 7):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
    x = torch.randn(4, 5)
    torch.testing.assert_close(network(x), network[-1](nn.functional.silu(network[0](x))))


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(1, 3), st.integers(4, 40), st.integers(4, 40)), st.sampled_from([(3,), (3, 5), (2, 3, 4)]))
def test_convolutions_take_images_of_any_size(shape: Shape, hidden: tuple[int, ...]) -> None:
    """Any image of 4 x 4 or more has an encoder and a decoder, whose inner images are small."""
    towards, back = pair("conv", hidden=hidden, shape=shape)
    size = math.prod(shape)
    assert towards(torch.zeros(2, size, dtype=torch.float64)).shape == (2, 4)
    assert back(torch.zeros(2, 3, dtype=torch.float64)).shape == (2, size)
    assert isinstance(towards, ConvEncoder)
    inner = towards.stages(torch.zeros(1, *shape, dtype=torch.float64))
    assert max(inner.shape[2:]) <= SMALLEST_SIDE
    assert inner.shape[1] == hidden[-1]


def test_a_stage_has_each_width() -> None:
    """There is a stage of each width of `hidden`, and the last is repeated for a large image."""
    towards = encoder("conv", inputs=64 * 64, outputs=4, hidden=(3, 5), shape=(1, 64, 64))
    strided = [layer for layer in towards.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    assert [layer.out_channels for layer in strided] == [3, 5, 5, 5]


def test_every_pixel_reaches_the_encoder_and_is_decoded() -> None:
    """No pixel, at an odd side's end either, is without influence on the code, or out of the latents' reach."""
    towards, back = pair("conv")
    x = torch.randn(1, SIZE, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(towards(x).square().sum(), x)
    assert (gradient != 0).all()
    jacobian = torch.autograd.functional.jacobian(back, torch.randn(3, dtype=torch.float64))
    assert (jacobian != 0).any(-1).all()


def test_a_pixels_place_is_its_place_in_the_row() -> None:
    """Rows hold an image channel by channel and line by line: what lies near there is near for the decoder."""
    back = decoder("conv", inputs=3, outputs=3 * 28 * 26, hidden=(4,), shape=(3, 28, 26)).double()
    image = back(torch.zeros(3, dtype=torch.float64)).reshape(3, 28, 26)
    start = back.get_parameter("into.bias").reshape(4, 7, 7)
    with torch.no_grad():
        start[:, 0, 0] += 1
    changed = (back(torch.zeros(3, dtype=torch.float64)).reshape(3, 28, 26) != image).any(0)
    assert changed[:8, :8].all()
    assert not changed[20:].any()
    assert not changed[:, 20:].any()


@pytest.mark.parametrize(("size", "shape"), [(16, None), (12, (1, 3, 4)), (17, (1, 4, 4))])
def test_convolutions_refuse_what_is_no_image(size: int, shape: Shape | None) -> None:
    """Rows that aren't images of 4 x 4 or more have no convolutional network."""
    with pytest.raises(ValueError, match=f"{size} numbers a row"):
        encoder("conv", inputs=size, outputs=2, hidden=(3,), shape=shape)
    with pytest.raises(ValueError, match=f"{size} numbers a row"):
        decoder("conv", inputs=2, outputs=size, hidden=(3,), shape=shape)
