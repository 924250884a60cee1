"""Small detectors and batches that the detector tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from detkds.detectors import Detector, build_detector
from detkds.structures import Batch, Target

CLASSES = ("ant", "bee", "cat")
FEW_REGIONS: dict[str, Any] = {
    "representation": 32,
    "rpn_samples": 32,
    "roi_samples": 16,
    "rpn_pre_nms": 60,
    "rpn_post_nms": 30,
    "rpn_pre_nms_predict": 60,
    "rpn_post_nms_predict": 30,
}
SMALL_MASKS = {"mask_resolution": 7, "mask_convs": 2, "mask_channels": 16}
SMALL: dict[str, dict[str, Any]] = {
    "faster_rcnn": FEW_REGIONS,
    "mask_rcnn": {**FEW_REGIONS, **SMALL_MASKS},
    "cascade_rcnn": FEW_REGIONS,
    "cascade_mask_rcnn": {**FEW_REGIONS, **SMALL_MASKS},
}


def small_detector(name: str, *, seed: int = 0, class_names: Sequence[str] = CLASSES, **options: Any) -> Detector:
    """A narrow detector with reproducible weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"backbone": "narrow8", "neck_channels": 32, **SMALL.get(name, {}), **options}
        return build_detector(name, class_names, **settings)


def make_batch(
    boxes: Sequence[Sequence[Sequence[float]]], size: tuple[int, int] = (128, 128), *, classes: int = 3, seed: int = 0
) -> Batch:
    """Random images with the given boxes, an ellipse in each for its mask; labels count up from 0 in every image."""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for one in boxes:
        corners = torch.tensor(one, dtype=torch.float32).reshape(-1, 4)
        targets.append(Target(boxes=corners, labels=torch.arange(len(one)) % classes, masks=ellipses(corners, size)))
    images = torch.rand(len(boxes), 3, *size, generator=generator)
    sizes = torch.tensor([size] * len(boxes))
    return Batch(images, sizes, tuple(range(len(boxes))), targets)


def ellipses(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The largest ellipse in each box as masks ``(R, H, W)``."""
    centers, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    x = (torch.arange(size[1]) + 0.5 - centers[:, :1]) / radii[:, :1]
    y = (torch.arange(size[0]) + 0.5 - centers[:, 1:]) / radii[:, 1:]
    return x[:, None, :] ** 2 + y[:, :, None] ** 2 < 1


@pytest.fixture
def batch() -> Batch:
    """Two images of 128 x 128: three objects of different sizes, and one."""
    return make_batch([[[10, 12, 50, 60], [64, 70, 120, 126], [5, 80, 37, 112]], [[20, 20, 100, 90]]])


@pytest.fixture
def small() -> Callable[..., Detector]:
    """Builds a narrow detector: ``small("fcos", seed=1, neck_channels=64)``."""
    return small_detector


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """Builds a batch from boxes: ``batch_of([[], [[0, 0, 9, 9]]], (96, 128))``."""
    return make_batch
