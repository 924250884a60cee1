"""Average precision equals the reference evaluator's and is defined wherever it should be."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detkds.data.coco import CocoDataset, load_coco
from detkds.errors import DataError
from detkds.evaluation.coco_ap import Metrics, evaluate_boxes, rescale
from detkds.structures import Detections

pycocotools = pytest.importorskip("pycocotools")
SIDE = 400


def _dataset(folder: Path, annotations: list[dict[str, Any]], images: int, classes: int = 3) -> CocoDataset:
    """Empty image files and the given annotations; category ids 10, 20, 30."""
    pictures = folder / "images"
    pictures.mkdir()
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": SIDE, "height": SIDE} for i in range(1, images + 1)],
        "categories": [{"id": 10 * k, "name": f"c{k}"} for k in range(1, classes + 1)],
        "annotations": annotations,
    }
    for record in content["images"]:
        (pictures / str(record["file_name"])).touch()
    (folder / "a.json").write_text(json.dumps(content))
    return load_coco(folder / "a.json", pictures)


def _annotation(image_id: int, category_id: int, bbox: list[float], iscrowd: int = 0) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": iscrowd}


def _random_case(folder: Path, seed: int) -> tuple[CocoDataset, dict[int, Detections]]:
    """Twelve images of objects of all sizes, crowds, empty images, false and repeated and missing detections."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    predictions: dict[int, Detections] = {}
    for image_id in range(1, 13):
        boxes, labels = [], []
        for _ in range(0 if image_id % 5 == 0 else int(rng.integers(1, 12))):
            w, h = np.exp(rng.uniform(np.log(8), np.log(180), 2))
            x, y = rng.uniform(0, SIDE - w), rng.uniform(0, SIDE - h)
            label = int(rng.integers(0, 2 if seed % 2 else 3))
            crowd = int(rng.random() < 0.15)
            annotations.append(_annotation(image_id, 10 * (label + 1), [x, y, w, h], crowd))
            for _ in range(int(rng.integers(0, 4))):
                noise = rng.normal(0, 0.08, 4) * np.array([w, h, w, h])
                boxes.append(np.array([x, y, x + w, y + h]) + noise)
                labels.append(label if rng.random() < 0.9 else int(rng.integers(0, 3)))
        for _ in range(110 if image_id == 3 else int(rng.integers(0, 4))):
            corner = rng.uniform(0, SIDE - 60, 2)
            boxes.append(np.concatenate([corner, corner + rng.uniform(5, 60, 2)]))
            labels.append(int(rng.integers(0, 3)))
        if image_id != 7:
            predictions[image_id] = Detections(
                torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
                torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
                torch.tensor(labels, dtype=torch.int64),
            )
    return _dataset(folder, annotations, 12), predictions


def _reference(dataset: CocoDataset, predictions: dict[int, Detections]) -> list[float]:
    """AP, AP50, AP75, small, medium, large and each class by pycocotools; -1 where undefined."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = []
    for image_id, found in predictions.items():
        for box, score, label in zip(found.boxes.double(), found.scores, found.labels, strict=True):
            x0, y0, x1, y1 = box.tolist()
            results.append(
                {
                    "image_id": image_id,
                    "category_id": dataset.category_ids[int(label)],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = dataset.ground_truth()
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    per_class = []
    for label in range(dataset.num_classes):
        precision = evaluator.eval["precision"][:, :, label, 0, -1]
        per_class.append(float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0)
    return [float(value) for value in evaluator.stats[:6]] + per_class


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(seed: int, tmp_path: Path) -> None:
    dataset, predictions = _random_case(tmp_path, seed)
    metrics = evaluate_boxes(dataset, predictions)
    ours = [metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ap_medium, metrics.ap_large]
    ours += list(metrics.per_class.values())
    reference = _reference(dataset, predictions)
    assert [-1.0 if math.isnan(value) else value for value in ours] == pytest.approx(reference, abs=1e-9)
    assert 0.05 < metrics.ap < 0.95
    assert list(metrics.per_class) == ["c1", "c2", "c3"]
    assert math.isnan(metrics.per_class["c3"]) == bool(seed % 2)


def test_hand_worked_precision(tmp_path: Path) -> None:
    """One object of 100 x 100, one box moved by 10 of 110 pixels: IoU 9/11 = 0.818, above 7 of 10 thresholds.

    The next object is missed, so recall is 1/2: 51 of the 101 recall points have precision 1. AP = 0.7 * 51/101.
    """
    dataset = _dataset(tmp_path, [_annotation(1, 10, [10, 10, 100, 100]), _annotation(1, 10, [200, 200, 50, 50])], 1)
    found = Detections(torch.tensor([[20.0, 10, 120, 110]]), torch.tensor([0.9]), torch.tensor([0]))
    metrics = evaluate_boxes(dataset, {1: found})
    assert metrics.ap == pytest.approx(0.7 * 51 / 101)
    assert metrics.ap50 == metrics.ap75 == pytest.approx(51 / 101)
    assert metrics.ap_large == pytest.approx(0.7)
    assert metrics.ap_medium == 0.0
    assert math.isnan(metrics.ap_small)


def test_perfect_detections_score_one(tmp_path: Path) -> None:
    dataset, _ = _random_case(tmp_path, 1)
    perfect = {}
    for image_id in dataset.image_ids:
        target = dataset.target(image_id)
        perfect[image_id] = Detections(target["boxes"], torch.ones(len(target["labels"])), target["labels"])
    assert evaluate_boxes(dataset, perfect).ap == pytest.approx(1.0)


def test_a_hundred_detections_of_an_image_and_class_count(tmp_path: Path) -> None:
    """101 objects, each detected once: the hundred best count, so that recall ends at 100 of 101 objects."""
    corners = [[20.0 * (i % 12), 20.0 * (i // 12)] for i in range(101)]
    dataset = _dataset(tmp_path, [_annotation(1, 10, [*corner, 10, 10]) for corner in corners], 1)
    boxes = dataset.target(1)["boxes"]
    perfect = Detections(boxes, torch.linspace(0.9, 0.1, 101), torch.zeros(101, dtype=torch.int64))
    assert evaluate_boxes(dataset, {1: perfect}).ap == pytest.approx(100 / 101)


def test_detections_in_a_crowd_are_no_mistakes(tmp_path: Path) -> None:
    annotations = [_annotation(1, 10, [0, 0, 50, 50]), _annotation(1, 10, [100, 100, 200, 200], iscrowd=1)]
    dataset = _dataset(tmp_path, annotations, 1)
    boxes = torch.tensor([[110.0, 110, 150, 150], [160, 160, 200, 200], [0, 0, 50, 50]])
    inside = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64))
    assert evaluate_boxes(dataset, {1: inside}).ap == pytest.approx(1.0)
    outside = Detections(boxes + torch.tensor([[200.0], [200], [0]]), inside.scores, inside.labels)
    assert evaluate_boxes(dataset, {1: outside}).ap == pytest.approx(1 / 3)


@pytest.mark.parametrize("form", ["nothing", "empty tensors"])
def test_no_detections_score_zero(form: str, tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, [_annotation(1, 10, [10, 10, 100, 100])], 2)
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    metrics = evaluate_boxes(dataset, {} if form == "nothing" else {1: empty, 2: empty})
    assert (metrics.ap, metrics.ap50, metrics.ap_large, metrics.per_class["c1"]) == (0, 0, 0, 0)
    assert math.isnan(metrics.ap_small) and math.isnan(metrics.per_class["c2"])


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, [_annotation(1, 10, [10, 10, 100, 100])], 1)
    box = [10.0, 10.0, 110.0, 110.0]
    found = Detections(
        torch.tensor([[math.nan, *box[1:]], box, [*box[:3], math.inf], box]),
        torch.tensor([0.9, math.nan, 0.9, 0.5]),
        torch.zeros(4, dtype=torch.int64),
    )
    assert evaluate_boxes(dataset, {1: found}).ap == pytest.approx(1.0)


def test_a_subset_is_measured_alone(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, [_annotation(i, 10, [10, 10, 100, 100]) for i in (1, 2)], 2)
    found = Detections(torch.tensor([[10.0, 10, 110, 110]]), torch.tensor([0.9]), torch.tensor([0]))
    assert evaluate_boxes(dataset, {1: found}).ap == pytest.approx(51 / 101)
    assert evaluate_boxes(dataset.subset([1]), {1: found}).ap == pytest.approx(1.0)


def test_evaluating_twice_gives_the_same_and_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset, predictions = _random_case(tmp_path, 1)
    boxes = {image_id: found.boxes.clone() for image_id, found in predictions.items()}
    first = evaluate_boxes(dataset, predictions)
    assert evaluate_boxes(dataset, predictions).to_dict() == first.to_dict()
    assert all(torch.equal(boxes[image_id], found.boxes) for image_id, found in predictions.items())
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_mistakes_are_named(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, [_annotation(1, 10, [10, 10, 100, 100])], 2)
    wrong = Detections(torch.zeros(1, 4), torch.ones(1), torch.tensor([3]))
    with pytest.raises(DataError) as caught:
        evaluate_boxes(dataset, {1: wrong, 99: wrong})
    assert "1 predicted image ids are not in the data set, the first is 99" in caught.value.faults[0]
    assert "expected labels from 0 to 2, got 3 to 3" in caught.value.faults[1]
    with pytest.raises(DataError, match="no objects"):
        evaluate_boxes(dataset.subset([2]), {})


def test_undefined_metrics_are_null_in_json() -> None:
    metrics = Metrics(0.5, 0.75, 0.25, math.nan, 0.125, 1.0, {"a": 0.5, "b": math.nan})
    text = json.dumps(metrics.to_dict(), allow_nan=False)
    assert json.loads(text)["ap_small"] is None and json.loads(text)["per_class"]["b"] is None


def test_rescale_by_hand() -> None:
    """A 96 x 128 network image of a 48 x 32 original: divide y by 2 and x by 4, then clip to 48 x 32."""
    found = Detections(torch.tensor([[8.0, 6, 40, 60], [100, 90, 140, 99]]), torch.ones(2), torch.zeros(2))
    back = rescale(found, torch.tensor([2.0, 4.0]), (48, 32))
    assert back.boxes.tolist() == [[2, 3, 10, 30], [25, 45, 32, 48]]


def test_rescale_leads_masks_back() -> None:
    masks = torch.zeros(1, 64, 64, dtype=torch.bool)
    masks[0, 4:12, 8:20] = True
    found = Detections(torch.tensor([[8.0, 4, 20, 12]]), torch.ones(1), torch.zeros(1), masks)
    back = rescale(found, torch.tensor([2.0, 2.0]), (20, 30))
    assert back.masks is not None
    expected = torch.zeros(1, 20, 30, dtype=torch.bool)
    expected[0, 2:6, 4:10] = True
    assert torch.equal(back.masks, expected)
    nothing = rescale(replace(found, masks=masks[:0]), torch.tensor([2.0, 2.0]), (20, 30))
    assert nothing.masks is not None and nothing.masks.shape == (0, 20, 30)
