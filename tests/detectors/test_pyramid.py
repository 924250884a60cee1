"""The pyramid's sizes and the anchors on its cells."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import _default_anchorgen

from detkds.detectors.backbones import build_backbone
from detkds.detectors.one_stage.retinanet import OCTAVE_SCALES
from detkds.detectors.pyramid import AnchorGrid, one_stage_pyramid, two_stage_pyramid

STRIDES = [8, 16, 32, 64, 128]


def _maps(height: int, width: int) -> list[torch.Tensor]:
    return [torch.zeros(2, 1, math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (33, 1), (128, 96)])
def test_every_cell_covers_its_stride(size: tuple[int, int]) -> None:
    one = one_stage_pyramid(build_backbone("narrow8", (8, 16, 32)), 16).eval()
    two = two_stage_pyramid(build_backbone("narrow8", (4, 8, 16, 32)), 16).eval()
    padded = [side + (-side % 32) for side in size]
    for pyramid in (one, two):
        with torch.no_grad():
            levels = pyramid(torch.rand(1, 3, *size))
        for level, stride in pyramid.strides.items():
            assert tuple(levels[level].shape) == (1, 16, *(math.ceil(side / stride) for side in padded))


def test_padding_equals_zero_padding_outside() -> None:
    pyramid = one_stage_pyramid(build_backbone("narrow8", (8, 16, 32)), 16).eval()
    image = torch.rand(1, 3, 40, 50)
    outside = torch.zeros(1, 3, 64, 64)
    outside[:, :, :40, :50] = image
    with torch.no_grad():
        for level, features in pyramid(image).items():
            assert torch.equal(features, pyramid(outside)[level])


def test_p6_source() -> None:
    body = build_backbone("narrow8", (8, 16, 32))
    assert one_stage_pyramid(body, 16).fpn.extra_blocks.p6.in_channels == 16
    assert one_stage_pyramid(body, 16, "c5").fpn.extra_blocks.p6.in_channels == 64
    assert one_stage_pyramid(body, 64, "c5").fpn.extra_blocks.use_P5 is False  # equal channels, still c5


def test_anchors_equal_torchvisions_where_sizes_divide() -> None:
    reference = _default_anchorgen()
    sizes = [tuple(int(scale * stride) for scale in OCTAVE_SCALES) for stride in STRIDES]
    grid = AnchorGrid(sizes, [(0.5, 1.0, 2.0)] * 5, STRIDES)
    maps = _maps(256, 384)
    expected = reference(ImageList(torch.zeros(2, 3, 256, 384), [(256, 384)] * 2), maps)
    assert torch.equal(torch.cat(grid(maps)), expected[0])
    assert grid.per_cell == 9


def test_anchors_keep_true_strides_at_odd_sizes() -> None:
    grid = AnchorGrid([(8.0,)] * 5, [(1.0,)] * 5, STRIDES)
    finest = grid(_maps(97, 131))[0].view(13, 17, 4)
    assert finest[2, 3].tolist() == [3 * 8 - 4, 2 * 8 - 4, 3 * 8 + 4, 2 * 8 + 4]
    image = ImageList(torch.zeros(1, 3, 97, 131), [(97, 131)])
    wrong = AnchorGenerator(((8.0,),), ((1.0,),))(image, _maps(97, 131)[:1])
    assert wrong[0].view(13, 17, 4)[2, 3].tolist() != finest[2, 3].tolist()  # why the strides are not inferred


def test_anchors_are_kept_bounded_and_usable_after_inference_mode() -> None:
    grid = AnchorGrid([(8.0,)], [(1.0,)], [8])
    with torch.inference_mode():
        first = grid([torch.zeros(1, 1, 2, 2)])
    assert grid([torch.zeros(3, 5, 2, 2)])[0] is first[0]
    scale = torch.ones(4, requires_grad=True)
    (first[0] * scale).sum().backward()
    for side in range(1, 60):
        grid([torch.zeros(1, 1, side, 1)])
    assert len(grid._kept) == 32


def test_anchor_key_tells_anchors_apart() -> None:
    grid = AnchorGrid([(8.0,)], [(1.0,)], [8])
    assert grid.key == AnchorGrid([(8.0,)], [(1.0,)], [8]).key
    others = [
        AnchorGrid([(9.0,)], [(1.0,)], [8]),
        AnchorGrid([(8.0,)], [(2.0,)], [8]),
        AnchorGrid([(8.0,)], [(1.0,)], [4]),
    ]
    assert grid.key not in {other.key for other in others}
    assert [grid.points_key == other.points_key for other in others] == [True, True, False]
