"""Every detector learns 16 real images by heart: what trains, decodes and predicts consistently can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds.config import TrainConfig
from detkds.data.coco import CocoDataset, load_coco
from detkds.data.digits import make_digits
from detkds.data.loader import evaluation_batches
from detkds.detectors import build_detector
from detkds.evaluation.coco_ap import evaluate_boxes, evaluate_masks
from detkds.evaluation.predict import predict_images
from detkds.policy import Policy
from detkds.structures import Detections
from detkds.training.student import StudentTrainer

IMAGES, BATCH = 16, 8


@dataclass(frozen=True)
class Recipe:
    """How one detector learns the images: its options, its highest learning rate, for how many steps, at what size.

    At 128 pixels the smallest class is 7 pixels across: what needs a point of its finest level inside an object, and
    these are 8 pixels apart, needs a larger size.
    """

    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 2e-3
    steps: int = 300
    size: int = 128


FEW_REGIONS = {"rpn_samples": 64, "roi_samples": 64, "rpn_pre_nms": 400, "rpn_post_nms": 200, "roi_resolution": 5}
REGIONS = {"anchor_scales": [4.0], "roi_canonical_size": 56, "representation": 128, **FEW_REGIONS}
MASKS = {"mask_resolution": 7, "mask_convs": 2, "mask_channels": 32}
RECIPES = {
    "retinanet": Recipe({"anchor_scales": [2.0, 3.0], "anchor_ratios": [1.0], "head_convs": 2}, lr=4e-3, steps=250),
    "fcos": Recipe({"head_convs": 1}, lr=8e-3, steps=400, size=192),
    "faster_rcnn": Recipe(REGIONS, steps=150),
    "cascade_rcnn": Recipe(REGIONS, steps=150),
    # Boxes start reg_max strides wide, and what fits an object badly is hardly trained: 16 would take longer.
    "gfl": Recipe({"head_convs": 1, "reg_max": 4}, lr=5e-3, steps=400, size=192),
    "reppoints": Recipe({"head_convs": 1}, steps=250),
    "rt_detr": Recipe({"size": "nano"}, lr=1e-3, steps=250),
    "rt_detr_v2": Recipe({"size": "nano"}, lr=1e-3, steps=500),
    "d_fine": Recipe({"size": "nano"}, lr=1e-3, steps=250),
    "deim_v2": Recipe({"size": "nano"}, lr=1e-3, steps=500),
    "deformable_detr": Recipe({"size": "nano"}, lr=1e-3, steps=500),
    "lw_detr": Recipe({"size": "nano"}, lr=1e-3, steps=450),
    "rf_detr": Recipe({"size": "nano"}, lr=1e-3, steps=1200),
    "detr": Recipe({"size": "nano"}, lr=1e-3, steps=1500),
    "conditional_detr": Recipe({"size": "nano"}, lr=1e-3, steps=800),
    "dab_detr": Recipe({"size": "nano"}, lr=1e-3, steps=1200),
}

MASK_RECIPES = {
    "mask_rcnn": Recipe({**REGIONS, **MASKS}),
    "cascade_mask_rcnn": Recipe({**REGIONS, **MASKS}),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RECIPES)
def test_learns_sixteen_images_by_heart(name: str, shared_data: Callable[[str], Path]) -> None:
    if "size" in RECIPES[name].options:
        pytest.importorskip("transformers")
    folder = shared_data("bccd")
    data = load_coco(folder / "train.json", folder / "train")
    full = [one for one in data.image_ids if len(data.target(one)["labels"].unique()) == data.num_classes]
    data = data.subset(full[:IMAGES])  # with all classes, for one of them is rare
    metrics = evaluate_boxes(data, _learnt(name, RECIPES[name], data))
    print(f"{name}: {metrics}")
    assert metrics.ap50 >= 0.8


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", MASK_RECIPES)
def test_learns_the_masks_of_sixteen_images_by_heart(name: str, tmp_path: Path) -> None:
    paths, _ = make_digits(tmp_path / "digits", train=IMAGES, val=1, num_classes=3)
    data = load_coco(*paths)
    metrics = evaluate_masks(data, _learnt(name, MASK_RECIPES[name], data))
    print(f"{name}: {metrics}")
    assert metrics.ap50 >= 0.8 and metrics.boxes is not None and metrics.boxes.ap50 >= 0.8


def _learnt(name: str, recipe: Recipe, data: CocoDataset) -> dict[int, Detections]:
    """What a narrow detector finds in the images after the recipe's steps on them."""
    cpu = torch.device("cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = {} if "size" in recipe.options else {"backbone": "narrow16", "neck_channels": 64}
        detector = build_detector(name, data.class_names, **body, **recipe.options)
    config = TrainConfig(optimizer="adamw", lr=recipe.lr, warmup_steps=20, clip_norm=10.0)
    trainer = StudentTrainer(name, detector, Policy([]), None, config, recipe.steps, seed=0, device=cpu)
    batches = list(evaluation_batches(data, size=recipe.size, batch_size=BATCH, masks=detector.info.masks))
    for step in range(recipe.steps):
        trainer.train_step(batches[step % len(batches)], None)
    return dict(predict_images(detector, data, size=recipe.size, batch_size=BATCH, device=cpu))
