"""Average precision of masks equals the reference evaluator's, whatever form the annotations have."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detkds.data.coco import CocoDataset, load_coco
from detkds.data.masks import run_lengths
from detkds.errors import DataError
from detkds.evaluation.coco_ap import Metrics, evaluate_boxes, evaluate_masks
from detkds.structures import Detections

pytest.importorskip("pycocotools")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
HEIGHT, WIDTH = 120, 160
FORMS = ("polygons", "counts", "compressed")


def _polygon(box: np.ndarray, rng: np.random.Generator) -> list[float]:
    """A star-shaped polygon in a box (x0, y0, x1, y1)."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 11))
    radii = rng.uniform(0.5, 1, 11)[:, None]
    points = (box[:2] + box[2:]) / 2 + radii * np.stack([np.cos(angles), np.sin(angles)], 1) * (box[2:] - box[:2]) / 2
    return [float(value) for value in points.reshape(-1)]


def _mask_of(polygons: list[list[float]]) -> np.ndarray:
    from pycocotools import mask as coco_mask

    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, HEIGHT, WIDTH))).astype(bool)


def _counts(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths down the columns, beginning with what is not set."""
    flat = np.concatenate([[False], mask.flatten(order="F")])
    changes = np.flatnonzero(np.diff(flat.astype(np.int8)))
    runs = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": [HEIGHT, WIDTH], "counts": [int(run) for run in runs]}


def _shifted(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    rows, columns = rng.integers(-4, 5, 2)
    return np.roll(mask, (rows, columns), axis=(0, 1))


def _box_of(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def _load(folder: Path, annotations: list[dict[str, Any]], images: int = 8) -> CocoDataset:
    pictures = folder / "images"
    pictures.mkdir()
    records = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(1, images + 1)]
    for record in records:
        (pictures / str(record["file_name"])).touch()
    categories = [{"id": 10 * k, "name": f"c{k}"} for k in (1, 2)]
    path = folder / "a.json"
    path.write_text(json.dumps({"images": records, "categories": categories, "annotations": annotations}))
    return load_coco(path, pictures)


def _random_case(folder: Path, seed: int) -> tuple[CocoDataset, dict[int, Detections]]:
    """Objects of all sizes in one and two polygons and both kinds of run lengths, crowds, moved and false masks."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    predictions: dict[int, Detections] = {}
    for image_id in range(1, 9):
        masks, labels = [], []
        for _ in range(0 if image_id == 5 else int(rng.integers(2, 9))):
            sides = np.exp(rng.uniform(np.log(12), np.log(110), 2))
            corner = rng.uniform(0, np.maximum(1, np.array([WIDTH, HEIGHT]) - sides))
            box = np.concatenate([corner, np.minimum(corner + sides, [WIDTH, HEIGHT])])
            polygons = [_polygon(box, rng) for _ in range(int(rng.integers(1, 3)))]
            mask = _mask_of(polygons)
            if not mask.any():
                continue
            form, label, crowd = FORMS[int(rng.integers(3))], int(rng.integers(2)), int(rng.random() < 0.2)
            forms = {"polygons": lambda p=polygons: p, "counts": lambda m=mask: _counts(m)}
            segmentation = forms.get(form, lambda m=mask: run_lengths(m))()
            x0, y0, x1, y1 = _box_of(mask)
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": 10 * (label + 1),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(mask.sum()),
                    "iscrowd": crowd,
                    "segmentation": _counts(mask) if crowd else segmentation,
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                masks.append(_shifted(mask, rng))
                labels.append(label if rng.random() < 0.9 else 1 - label)
        masks.append(np.zeros((HEIGHT, WIDTH), dtype=bool))  # a detection whose mask is empty
        labels.append(0)
        boxes = [_box_of(mask) if mask.any() else [3.0, 4.0, 20.0, 30.0] for mask in masks]
        predictions[image_id] = Detections(
            torch.tensor(boxes, dtype=torch.float32),
            torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
            torch.tensor(labels, dtype=torch.int64),
            torch.from_numpy(np.stack(masks)),
        )
    return _load(folder, annotations), predictions


def _reference(dataset: CocoDataset, predictions: dict[int, Detections], kind: str) -> list[float]:
    """AP, AP50, AP75, small, medium, large by pycocotools; -1 where undefined."""
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results: list[dict[str, Any]] = []
    for image_id, found in predictions.items():
        assert found.masks is not None
        for box, score, label, mask in zip(found.boxes.double(), found.scores, found.labels, found.masks, strict=True):
            x0, y0, x1, y1 = box.tolist()
            runs = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
            where = {"segmentation": runs} if kind == "segm" else {"bbox": [x0, y0, x1 - x0, y1 - y0]}
            category = dataset.category_ids[int(label)]
            results.append({"image_id": image_id, "category_id": category, "score": float(score), **where})
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = dataset.ground_truth(masks=True)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return [float(value) for value in evaluator.stats[:6]]


def _scalars(metrics: Metrics) -> list[float]:
    values = [metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ap_medium, metrics.ap_large]
    return [-1.0 if math.isnan(value) else value for value in values]


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(seed: int, tmp_path: Path) -> None:
    dataset, predictions = _random_case(tmp_path, seed)
    metrics = evaluate_masks(dataset, predictions)
    assert metrics.kind == "mask" and metrics.boxes is not None and metrics.boxes.kind == "box"
    assert _scalars(metrics) == pytest.approx(_reference(dataset, predictions, "segm"), abs=1e-9)
    assert _scalars(metrics.boxes) == pytest.approx(_reference(dataset, predictions, "bbox"), abs=1e-9)
    assert 0.05 < metrics.ap < 0.95 and metrics.ap != metrics.boxes.ap
    assert evaluate_boxes(dataset, predictions).to_dict() == metrics.boxes.to_dict()


def _two_squares(folder: Path) -> CocoDataset:
    """Two objects of 20 x 20 pixels in one image."""
    squares = [[10, 10, 30, 10, 30, 30, 10, 30], [60, 60, 80, 60, 80, 80, 60, 80]]
    annotations = [
        {"image_id": 1, "category_id": 10, "bbox": [one[0], one[1], 20, 20], "segmentation": [one], "id": index}
        for index, one in enumerate(squares, 1)
    ]
    return _load(folder, annotations)


def _filled(*boxes: tuple[int, int, int, int]) -> Tensor:
    masks = torch.zeros(len(boxes), HEIGHT, WIDTH, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def test_masks_count_and_not_the_boxes(tmp_path: Path) -> None:
    """Both boxes are right. One mask is; of the other three quarters are: IoU .75, above 6 of 10 thresholds.

    The better score is the whole mask's, so precision is 1 up to recall 1 at 6 thresholds, up to recall 1/2 at 4.
    """
    dataset = _two_squares(tmp_path)
    boxes = torch.tensor([[10.0, 10, 30, 30], [60, 60, 80, 80]])
    found = Detections(
        boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), _filled((10, 10, 30, 30), (60, 60, 80, 75))
    )
    metrics = evaluate_masks(dataset, {1: found})
    assert metrics.boxes is not None and metrics.boxes.ap == pytest.approx(1.0)
    assert metrics.ap == pytest.approx(0.6 + 0.4 * 51 / 101)


def test_predictions_may_come_one_by_one(tmp_path: Path) -> None:
    dataset, predictions = _random_case(tmp_path, 0)

    def stream() -> Iterator[tuple[int, Detections]]:
        yield from predictions.items()

    assert evaluate_masks(dataset, stream()).to_dict() == evaluate_masks(dataset, predictions).to_dict()


def test_mistakes_are_named(tmp_path: Path) -> None:
    dataset = _two_squares(tmp_path)
    found = Detections(torch.zeros(1, 4), torch.ones(1), torch.tensor([0]))
    with pytest.raises(DataError, match=r"image 1: expected masks of shape \(1, 120, 160\), got None"):
        evaluate_masks(dataset, {1: found})
    with pytest.raises(DataError, match=r"got \(1, 8, 8\)"):
        evaluate_masks(dataset, {1: replace(found, masks=torch.ones(1, 8, 8, dtype=torch.bool))})
    dataset.table.segmentations[1] = None
    with pytest.raises(DataError, match=r"1 annotations lack a mask.*annotation 2 of image 1: it has no segmentation"):
        evaluate_masks(dataset.subset([1]), {})
