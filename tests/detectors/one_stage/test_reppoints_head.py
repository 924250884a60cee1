"""The head's deformable convolutions look where the points are, and the points' order is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from detkds.detectors.one_stage import reppoints_head
from detkds.detectors.one_stage.reppoints_head import RepPointsHead, kernel_taps, look_at


def _whole_numbers(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-4, 5, shape, generator=generator).float()


@pytest.fixture
def convolution(generator: torch.Generator) -> DeformConv2d:
    module = DeformConv2d(3, 5, 3, padding=1, bias=False)
    module.weight.data = _whole_numbers(5, 3, 3, 3, generator=generator)
    return module


@pytest.fixture
def features(generator: torch.Generator) -> Tensor:
    return _whole_numbers(2, 3, 6, 7, generator=generator)


def test_without_offsets_it_is_a_convolution(convolution: DeformConv2d, features: Tensor) -> None:
    found = look_at(features, torch.zeros(2, 18, 6, 7), convolution)
    assert torch.equal(found, F.conv2d(features, convolution.weight, padding=1))


def test_points_on_the_taps_give_a_convolution(convolution: DeformConv2d, features: Tensor) -> None:
    points = kernel_taps().expand(2, 18, 6, 7)
    found = look_at(features, points - kernel_taps(), convolution)
    assert torch.equal(found, F.conv2d(features, convolution.weight, padding=1))


def test_points_at_the_cell_see_it_alone(convolution: DeformConv2d, features: Tensor) -> None:
    found = look_at(features, torch.zeros(2, 18, 6, 7) - kernel_taps(), convolution)
    assert torch.equal(found, F.conv2d(features, convolution.weight.sum((2, 3), keepdim=True)))


def test_one_tap_at_one_place(convolution: DeformConv2d, features: Tensor) -> None:
    nn.init.zeros_(convolution.weight)
    convolution.weight.data[0, 1, 2, 0] = 1.0  # the tap below and left: y = 1, x = -1; the seventh of nine
    assert kernel_taps()[0, 12:14, 0, 0].tolist() == [1, -1]
    points = torch.zeros(2, 18, 6, 7)
    points[:, 12], points[:, 13] = 2, 0.5  # two cells down, half a cell right
    found = look_at(features, points - kernel_taps(), convolution)
    expected = (features[1, 1, 3 + 2, 4] + features[1, 1, 3 + 2, 5]) / 2
    assert found[1, 0, 3, 4] == expected


def test_autocast_keeps_positions_exact(convolution: DeformConv2d, features: Tensor) -> None:
    offsets = torch.full((2, 18, 6, 7), 0.123456789)
    plain = look_at(features, offsets, convolution)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(look_at(features.bfloat16(), offsets, convolution), plain)


@pytest.fixture
def head() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RepPointsHead(8, 3, 1, "minmax")


def _set_points(layer: nn.Conv2d, points: list[tuple[float, float]]) -> None:
    """Make a layer give the same points (x, y) everywhere."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    layer.bias.data = torch.tensor([number for x, y in points for number in (y, x)])


def test_both_stages_by_hand(head: Any, generator: torch.Generator) -> None:
    _set_points(head.initial_out, [(-1.0, -2), (3, 1)] + [(0, 0)] * 7)
    _set_points(head.refined_out, [(-0.5, 0), (1, 0)] + [(0, 4)] * 7)
    levels = [torch.randn(2, 8, side, 2, generator=generator) for side in (3, 1)]
    rows = head(levels)
    assert rows["cls_logits"].shape == (2, 8, 3)
    # left, top, right, bottom from the cell: the points span x -1..3, y -2..1, and then x -1.5..4, y -2..4
    assert rows["initial_regression"].unique(dim=1).tolist() == [[[1, 2, 3, 1]]] * 2
    assert rows["bbox_regression"].unique(dim=1).tolist() == [[[1.5, 2, 4, 4]]] * 2


def test_rows_follow_levels_and_cells(head: Any, generator: torch.Generator) -> None:
    levels = [torch.randn(2, 8, *size, generator=generator) for size in ((3, 4), (2, 1))]
    together, alone = head(levels), head(levels[1:])
    for name, rows in alone.items():
        assert torch.allclose(together[name][:, 12:], rows, atol=1e-6)
    logits, _, _ = head._level(levels[0])
    assert torch.equal(together["cls_logits"][1, 2 * 4 + 3], logits[1, :, 2, 3])


def test_classes_start_at_one_per_cent(head: Any) -> None:
    logits = head([torch.zeros(1, 8, 2, 2)])["cls_logits"]
    assert torch.allclose(logits.sigmoid(), torch.tensor(0.01), atol=1e-4)


def test_hidden_convolutions_keep_the_scale(generator: torch.Generator) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head: Any = RepPointsHead(64, 3, 0, "moment")
    level = torch.randn(4, 64, 8, 8, generator=generator)
    hidden = (head.initial_conv(level), *(look_at(level, torch.zeros(4, 18, 8, 8), one) for one in _deformable(head)))
    for one in hidden:  # by He et al. 2015, equation 7, the mean square after the ReLU is that of the input
        assert float(one[..., 1:-1, 1:-1].relu().square().mean().detach()) == pytest.approx(1, rel=0.15)


def _deformable(head: Any) -> tuple[DeformConv2d, DeformConv2d]:
    return head.refined_conv, head.class_conv


@pytest.mark.parametrize("part", [0, 2], ids=["classes", "refined"])
def test_later_stages_send_a_tenth_of_the_gradient(
    head: Any, part: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (head.class_conv, head.class_out, head.refined_conv, head.refined_out):
        nn.init.normal_(module.weight, std=0.5, generator=generator)
    level = torch.randn(1, 8, 4, 4, generator=generator)
    gradients = []
    for factor in (reppoints_head._POINT_GRADIENT, 1.0):
        monkeypatch.setattr(reppoints_head, "_POINT_GRADIENT", factor)
        gradients.append(torch.autograd.grad(head._level(level)[part].sum(), head.initial_out.bias)[0])
    scaled, full = gradients
    assert full.abs().min() > 0
    assert torch.allclose(scaled, full / 10, rtol=1e-4)
