"""Narrow detectors, trained for a few steps so that their scores differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds.config import AugmentationConfig, TrainConfig
from detkds.data.coco import CocoDataset, load_coco
from detkds.data.loader import evaluation_batches
from detkds.detectors import Detector, build_detector
from detkds.policy import Policy
from detkds.training.population import StudentSpec, train_population
from detkds.training.setup import TrainingSetup

SIZE = 64
_REGIONS = {"representation": 32, "rpn_samples": 32, "roi_samples": 16, "score_threshold": 0.2}
OPTIONS: dict[str, dict[str, Any]] = {
    "retinanet": {"head_convs": 1, "anchor_scales": [2.0, 3.0], "anchor_ratios": [1.0]},
    "fcos": {"head_convs": 2, "p6_from": "c5"},
    "faster_rcnn": {**_REGIONS, "anchor_scales": [4.0]},
    "mask_rcnn": {**_REGIONS, "anchor_scales": [4.0], "mask_resolution": 4, "mask_convs": 1, "mask_channels": 16},
}


def _options(name: str) -> dict[str, Any]:
    return {"backbone": "narrow8", "neck_channels": 24, **OPTIONS.get(name, {})}


@pytest.fixture(scope="package")
def options_of() -> Callable[[str], dict[str, Any]]:
    """What ``trained`` detectors are built with."""
    return _options


@pytest.fixture(scope="package")
def digits(tiny_data: Path) -> tuple[CocoDataset, CocoDataset]:
    """Training and test images, 64 pixels wide."""
    train, test = (load_coco(tiny_data / f"{part}.json", tiny_data / part) for part in ("train", "val"))
    return train, test


@pytest.fixture(scope="package")
def trained(digits: tuple[CocoDataset, CocoDataset]) -> Callable[[str], Detector]:
    """``trained("fcos")``, once for all tests."""
    kept: dict[str, Detector] = {}
    config = TrainConfig(
        epochs=6, batch_size=4, optimizer="adamw", lr=4e-3, warmup_steps=2, augmentation=AugmentationConfig(flip=0)
    )

    def give(name: str) -> Detector:
        if name not in kept:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                detector = build_detector(name, digits[0].class_names, **_options(name))
            if name == "mask_rcnn":
                detector.load_state_dict(give("faster_rcnn").state_dict(), strict=False)
            else:
                setup = TrainingSetup(None, lambda seed, inherit: detector, *digits, config, SIZE, torch.device("cpu"))
                [result] = train_population(setup, [StudentSpec(name, Policy())], seed=0)
                assert result.failure is None, result.failure
            kept[name] = detector.eval()
        return kept[name]

    return give


@pytest.fixture(scope="package")
def images(digits: tuple[CocoDataset, CocoDataset]) -> list[torch.Tensor]:
    """The test images, each ``(1, 3, 64, 64)``."""
    return [batch.images for batch in evaluation_batches(digits[1], size=SIZE, batch_size=1)]
