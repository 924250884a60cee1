"""Predicting a data set: original pixels, every image, modes put back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from detkds.data.coco import CocoDataset, load_coco
from detkds.data.store import ImageStore
from detkds.detectors.base import Detector
from detkds.evaluation.coco_ap import evaluate_boxes
from detkds.evaluation.predict import predict_images
from detkds.structures import Batch, Detections, DetectorInfo, DetectorOutput


class BrightSpot(Detector):
    """Finds the extent of what is bright; counts how it was called."""

    def __init__(self) -> None:
        super().__init__(("spot",))
        self.info = DetectorInfo({})
        self.frozen = nn.BatchNorm2d(3).eval()
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, batch: Batch) -> DetectorOutput:
        return DetectorOutput({}, batch.image_sizes)

    def predict(self, batch: Batch) -> list[Detections]:
        self.modes.append((self.training, torch.is_inference_mode_enabled()))
        found = []
        for image in batch.images:
            rows, columns = torch.nonzero(image.mean(0) > 0.5, as_tuple=True)
            corners = [[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]] if len(rows) else []
            boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
            found.append(Detections(boxes, torch.ones(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)))
        return found

    def home_state_dict(self) -> dict[str, Tensor]:
        return self.state_dict()

    @staticmethod
    def is_backbone(name: str) -> bool:
        return bool(name)


@pytest.fixture
def spots(tmp_path: Path) -> CocoDataset:
    """Six black images of varied shape with one white rectangle each, the last without."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for image_id in range(1, 7):
        width, height = (int(side) for side in rng.integers(120, 260, 2))
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        if image_id < 6:
            x, y = int(rng.integers(0, 40)), int(rng.integers(0, 40))
            w, h = int(rng.integers(40, 80)), int(rng.integers(40, 80))
            pixels[y : y + h, x : x + w] = 255
            annotations.append({"image_id": image_id, "category_id": 1, "bbox": [x, y, w, h]})
        Image.fromarray(pixels).save(tmp_path / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "spot"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return load_coco(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize("size", [96, 384])
def test_detections_come_back_in_original_pixels(spots: CocoDataset, size: int) -> None:
    found = dict(predict_images(BrightSpot(), spots, size=size, batch_size=4, device="cpu"))
    assert sorted(found) == list(spots.image_ids)
    for image_id, detections in found.items():
        expected = spots.target(image_id)["boxes"]
        assert detections.boxes.shape == expected.shape
        assert torch.allclose(detections.boxes, expected, atol=1.5 * max(1, 260 / size))
    assert evaluate_boxes(spots, found).ap50 == 1.0


def test_modes_are_put_back_and_no_gradient_is_kept(spots: CocoDataset) -> None:
    detector = BrightSpot().train()
    detector.frozen.eval()
    dict(predict_images(detector, spots, size=64, batch_size=4, device="cpu"))
    assert detector.modes == [(False, True)] * 2
    assert detector.training and not detector.frozen.training


def test_modes_are_put_back_after_a_failure(spots: CocoDataset) -> None:
    detector = BrightSpot().train()
    (spots.folder / "3.png").unlink()
    with pytest.raises(ValueError, match="image 3"):
        dict(predict_images(detector, spots, size=64, batch_size=4, device="cpu"))
    assert detector.training


def test_a_store_gives_the_same(spots: CocoDataset) -> None:
    store = ImageStore(spots, 96)
    plain = dict(predict_images(BrightSpot(), spots, size=96, batch_size=4, device="cpu"))
    for _ in range(2):
        stored = dict(predict_images(BrightSpot(), spots, size=96, batch_size=4, device="cpu", store=store))
        assert all(torch.equal(stored[image_id].boxes, plain[image_id].boxes) for image_id in plain)
    assert store.full


class ManySpots(BrightSpot):
    """Knows more classes than the data, in another order; sees one object of each of the first two."""

    def __init__(self, class_names: tuple[str, ...]) -> None:
        super().__init__()
        self.class_names = class_names

    def predict(self, batch: Batch) -> list[Detections]:
        found = super().predict(batch)
        return [
            Detections(one.boxes.repeat(2, 1), one.scores.repeat(2), torch.arange(2).repeat_interleave(len(one.boxes)))
            for one in found
        ]


def test_a_detector_of_other_classes_is_read_by_name(spots: CocoDataset) -> None:
    """``spot`` is its class 1; what it calls ``dog`` is left out."""
    [name] = spots.class_names
    found = dict(predict_images(ManySpots(("dog", name, "cat")), spots, size=64, batch_size=2, device="cpu"))
    expected = dict(predict_images(BrightSpot(), spots, size=64, batch_size=2, device="cpu"))
    for image, detections in expected.items():
        assert torch.equal(found[image].boxes, detections.boxes)
        assert found[image].labels.tolist() == [0] * len(detections.boxes)
