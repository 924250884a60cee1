"""Small detectors and batches that the detector tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from detkds.detectors import Detector
from detkds.structures import Batch
from detkds.testing.detectors import CLASSES, example_batch, four_objects, seeded_detector

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
    settings = {"backbone": "narrow8", "neck_channels": 32, **SMALL.get(name, {}), **options}
    return seeded_detector(name, seed=seed, class_names=class_names, **settings)


@pytest.fixture
def batch() -> Batch:
    """Two images of 128 x 128: three objects of different sizes, and one."""
    return four_objects()


@pytest.fixture
def small() -> Callable[..., Detector]:
    """Builds a narrow detector: ``small("fcos", seed=1, neck_channels=64)``."""
    return small_detector


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    """Builds a batch from boxes: ``batch_of([[], [[0, 0, 9, 9]]], (96, 128))``."""
    return example_batch
