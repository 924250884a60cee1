"""Small detectors and batches that the detector tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from detkds.detectors import Detector, build_detector
from detkds.structures import Batch, Target

CLASSES = ("ant", "bee", "cat")
SMALL: dict[str, dict[str, Any]] = {
    "faster_rcnn": {
        "representation": 32,
        "rpn_samples": 32,
        "roi_samples": 16,
        "rpn_pre_nms": 60,
        "rpn_post_nms": 30,
        "rpn_pre_nms_predict": 60,
        "rpn_post_nms_predict": 30,
    }
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
    """Random images with the given boxes; labels count up from 0 in every image."""
    generator = torch.Generator().manual_seed(seed)
    targets = [
        Target(boxes=torch.tensor(one, dtype=torch.float32).reshape(-1, 4), labels=torch.arange(len(one)) % classes)
        for one in boxes
    ]
    images = torch.rand(len(boxes), 3, *size, generator=generator)
    sizes = torch.tensor([size] * len(boxes))
    return Batch(images, sizes, tuple(range(len(boxes))), targets)


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
