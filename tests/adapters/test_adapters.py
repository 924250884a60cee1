"""What is learned on the student's maps."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from detkds.errors import UserError
from detkds.registry import ADAPTERS


def build(expression: str, student: int, teacher: int, seed: int = 0):
    return ADAPTERS.build(expression).build(student, teacher, torch.Generator().manual_seed(seed))


def test_auto_is_a_pointwise_convolution_where_channels_differ() -> None:
    assert build("auto", 4, 4) is None
    layer = build("auto", 3, 4)
    assert layer.kernel_size == (1, 1) and (layer.in_channels, layer.out_channels) == (3, 4)


def test_a_convolution_keeps_the_map_and_is_drawn_from_the_seed_alone() -> None:
    feature = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    before = torch.random.get_rng_state()
    layer, again, other = (build("conv(3, relu=true)", 3, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(layer[0].weight, again[0].weight) and not torch.equal(layer[0].weight, other[0].weight)
    assert torch.equal(layer(feature), functional.conv2d(feature, layer[0].weight, layer[0].bias, padding=1).relu())
    assert build("conv(1)", 4, 4) is not None


def test_batch_normalisation_follows_the_convolution() -> None:
    feature = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    adapted = build("conv(1, norm=batch)", 3, 4)(feature).detach()
    torch.testing.assert_close(adapted.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(adapted.std((0, 2, 3), unbiased=False), torch.ones(4), atol=1e-3, rtol=0)


def test_one_cell_is_normalised_by_the_running_statistics() -> None:
    """The last level of a pyramid may have one cell, and a batch one image."""
    layers = build("conv(1, norm=batch)", 3, 4)
    feature = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    layers(feature)
    kept = {name: buffer.clone() for name, buffer in layers.named_buffers()}
    assert not torch.equal(kept["1.running_mean"], torch.zeros(4))
    cell = feature[:1, :, :1, :1]
    adapted = layers(cell)
    assert torch.equal(adapted, layers.eval()(cell))
    adapted.sum().backward()
    assert layers[1].bias.grad.tolist() == [1.0] * 4
    assert all(torch.equal(kept[name], buffer) for name, buffer in layers.named_buffers())


def test_generation_sees_what_the_mask_leaves() -> None:
    """The map is generated, by two convolutions with a ReLU between, from an aligned map with positions set to 0."""
    feature = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    module = build("generate(ratio=0.5)", 3, 4)
    drawn = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    hidden = functional.conv2d(feature, module.align.weight, module.align.bias) * (drawn >= 0.5)
    first, _, last = module.generate
    hidden = functional.conv2d(hidden, first.weight, first.bias, padding=1).relu()
    expected = functional.conv2d(hidden, last.weight, last.bias, padding=1)
    assert torch.equal(module(feature, torch.Generator().manual_seed(5)), expected)
    assert isinstance(build("generate", 4, 4).align, nn.Identity)


@pytest.mark.parametrize("expression", ["conv(2)", "conv(3, norm=layer)", "generate(ratio=1)", "generate(ratio=0)"])
def test_arguments_that_make_no_sense_are_refused(expression: str) -> None:
    with pytest.raises(UserError, match="expected"):
        ADAPTERS.build(expression)
