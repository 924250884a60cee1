"""Crops by matrix products against torchvision's RoIAlign, their values and their gradients."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from detkds.knowledge import crops
from detkds.knowledge.crops import Crops


def boxes_and_maps(seed: int = 0) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = 70 * torch.rand(3, 5, 2, generator=generator) - 10
    sides = 60 * torch.rand(3, 5, 2, generator=generator) ** 2
    boxes = torch.cat([corners, corners + sides], 2)
    outside = torch.tensor([[200.0, 200.0, 240.0, 220.0], [-60.0, -60.0, -30.0, 5.0], [5.0, 5.0, 5.0, 5.0]])
    maps = torch.randn(3, 4, 6, 9, generator=generator)
    return [torch.cat([boxes[0], outside]), boxes[1, :0], boxes[2, :3]], maps


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("stride", [8, 16, 64])
def test_equal_to_roi_align(size: int, stride: int):
    boxes, maps = boxes_and_maps()
    ours, theirs = maps.clone().requires_grad_(), maps.clone().requires_grad_()
    cropped = Crops(boxes, maps.shape[2:], stride, size, like=maps)(ours)
    expected = roi_align(theirs, boxes, size, 1 / stride, sampling_ratio=2, aligned=True)
    assert cropped.shape == (11, 4, size, size)
    torch.testing.assert_close(cropped, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(cropped.shape, generator=torch.Generator().manual_seed(1))
    (cropped * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-5)


def test_parts_of_the_images_give_the_same_crops(monkeypatch: pytest.MonkeyPatch):
    boxes, maps = boxes_and_maps()
    whole = Crops(boxes, maps.shape[2:], 8, 7, like=maps)(maps)
    monkeypatch.setattr(crops, "_LIMIT", 1)
    torch.testing.assert_close(Crops(boxes, maps.shape[2:], 8, 7, like=maps)(maps), whole, atol=1e-6, rtol=1e-6)


def test_no_boxes_at_all():
    maps = torch.randn(2, 4, 6, 6, requires_grad=True)
    cropped = Crops([torch.zeros(0, 4)] * 2, (6, 6), 8, 7, like=maps)(maps)
    assert cropped.shape == (0, 4, 7, 7)
    cropped.sum().backward()
    assert maps.grad is not None and not maps.grad.any()


def test_gradient():
    boxes, maps = boxes_and_maps()
    maps = maps[:, :1, :4, :4].double().requires_grad_()
    crop = Crops(boxes, (4, 4), 16, 2, like=maps)
    assert torch.autograd.gradcheck(crop, maps)
