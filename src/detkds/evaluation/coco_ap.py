"""COCO average precision of boxes and masks, equal to the reference evaluator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as functional
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from detkds.data.coco import CocoDataset
from detkds.data.masks import run_lengths
from detkds.errors import DataError, Faults
from detkds.structures import Detections

MAX_DETECTIONS = 100
"""Detections per image and class that are counted, best first, as in COCO."""


Predictions = Mapping[int, Detections] | Iterable[tuple[int, Detections]]
"""Detections by image id, boxes and masks in pixels of the **original** image. An image that is absent counts as one
without detections. Detections with a number that is not finite cannot match and are left out."""


@dataclass(frozen=True)
class Metrics:
    """COCO metrics as fractions in [0, 1]; nan where the ground truth has no such object.

    Attributes:
        ap: mean over IoU 0.50:0.05:0.95 and classes; ``ap50`` and ``ap75`` at one IoU.
        ap_small, ap_medium, ap_large: objects below 32^2, up to 96^2 and above, in square pixels of the annotation.
        per_class: ``ap`` of each class by name.
        kind: whose overlap is measured.
        boxes: of the same detections' boxes, where ``kind`` is ``mask``.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    per_class: dict[str, float]
    kind: Literal["box", "mask"] = "box"
    boxes: Metrics | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; None where a metric is undefined."""
        scalars = {name: _or_none(getattr(self, name)) for name in _SCALARS}
        data = {
            "kind": self.kind,
            **scalars,
            "per_class": {name: _or_none(value) for name, value in self.per_class.items()},
        }
        return data if self.boxes is None else {**data, "boxes": self.boxes.to_dict()}


_SCALARS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def evaluate_boxes(dataset: CocoDataset, predictions: Predictions) -> Metrics:
    """Measure the boxes of detections against the ground truth of a data set.

    Raises:
        DataError: the data set has no object to find; a prediction is for an image or a label it does not have.
    """
    truth = _truth(dataset, masks=False)
    return _measure(dataset, truth, _results(dataset, predictions, masks=False), "bbox")


def evaluate_masks(dataset: CocoDataset, predictions: Predictions) -> Metrics:
    """Measure masks ``(R, H, W)`` of detections, and their boxes in :attr:`Metrics.boxes`.

    A detection is small, medium or large by the area of its mask. Masks are kept as run lengths, so that predictions
    that come one by one need not fit in memory.

    Raises:
        DataError: as in :func:`evaluate_boxes`; annotations lack a mask, or a prediction has none of its image's size.
    """
    dataset.require_masks("mask AP is measured against masks")
    truth = _truth(dataset, masks=True)
    results = _results(dataset, predictions, masks=True)
    boxes = _measure(dataset, truth, results, "bbox")
    by_mask = [{**result, "area": result["mask_area"]} for result in results]
    return replace(_measure(dataset, truth, by_mask, "segm"), kind="mask", boxes=boxes)


def _truth(dataset: CocoDataset, *, masks: bool) -> dict[str, list[dict[str, Any]]]:
    truth = dataset.ground_truth(masks=masks)
    if all(annotation["iscrowd"] for annotation in truth["annotations"]):
        raise DataError("evaluation: the data set has no objects, so average precision is undefined; check its split")
    return truth


def _measure(
    dataset: CocoDataset, truth: Mapping[str, Any], results: Sequence[dict[str, Any]], overlap: Literal["bbox", "segm"]
) -> Metrics:
    evaluator = COCOeval_faster(
        _indexed(truth), _indexed({**truth, "annotations": results}), overlap, print_function=_mute
    )
    evaluator.params.maxDets = [MAX_DETECTIONS]
    evaluator.evaluate()
    evaluator.accumulate()
    precision = np.asarray(evaluator.eval["precision"])[:, :, :, :, 0]
    areas = {label: index for index, label in enumerate(evaluator.params.areaRngLbl)}
    thresholds = np.asarray(evaluator.params.iouThrs)

    def mean(values: np.ndarray) -> float:
        values = values[values > -1]
        return float(values.mean()) if values.size else math.nan

    everything = precision[:, :, :, areas["all"]]
    return Metrics(
        ap=mean(everything),
        ap50=mean(everything[np.isclose(thresholds, 0.5)]),
        ap75=mean(everything[np.isclose(thresholds, 0.75)]),
        ap_small=mean(precision[:, :, :, areas["small"]]),
        ap_medium=mean(precision[:, :, :, areas["medium"]]),
        ap_large=mean(precision[:, :, :, areas["large"]]),
        per_class={name: mean(everything[:, :, label]) for label, name in enumerate(dataset.class_names)},
    )


def rescale(detections: Detections, scale: Tensor, image_size: tuple[int, int]) -> Detections:
    """Lead detections from network pixels back to the original image.

    Args:
        scale: ``(2,)`` network pixels per original pixel (y, x), a row of ``Batch.scales``.
        image_size: height and width of the original image; boxes are clipped to it, masks resized to it.
    """
    height, width = image_size
    vertical, horizontal = (float(value) for value in scale)
    boxes = detections.boxes / detections.boxes.new_tensor([horizontal, vertical] * 2)
    boxes = torch.minimum(boxes.clamp_min(0), boxes.new_tensor([width, height, width, height]))
    masks = detections.masks
    if masks is not None:
        masks = _resized(masks[:, : round(height * vertical), : round(width * horizontal)], image_size)
    return Detections(boxes, detections.scores, detections.labels, masks)


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    if not len(masks):
        return masks.new_zeros(0, *size)
    return functional.interpolate(masks[None].byte(), size=size, mode="nearest-exact")[0].bool()


def _results(dataset: CocoDataset, predictions: Predictions, *, masks: bool) -> list[dict[str, Any]]:
    """Detections as the evaluator's records, ids from 1; all faults at once."""
    records: list[dict[str, Any]] = []
    unknown: list[int] = []
    faults: list[str] = []
    pairs: Any = predictions.items() if isinstance(predictions, Mapping) else predictions
    for image_id, detections in pairs:
        if image_id not in dataset.records:
            unknown.append(image_id)
        elif fault := _fault(dataset, image_id, detections, masks):
            faults.append(f"image {image_id}: {fault}")
        elif not faults:
            records += _records(dataset, image_id, detections, masks, len(records) + 1)
    all_faults = Faults("evaluation")
    if unknown:
        all_faults.add(f"{len(unknown)} predicted image ids are not in the data set, the first is {min(unknown)}")
    if faults:
        all_faults.add(faults[0])
    all_faults.raise_as(DataError)
    return records


def _fault(dataset: CocoDataset, image_id: int, detections: Detections, masks: bool) -> str | None:
    """What is wrong with the detections of an image of the data set."""
    labels = detections.labels
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < dataset.num_classes:
        return (
            f"expected labels from 0 to {dataset.num_classes - 1}, got {int(labels.min())} to {int(labels.max())}; "
            f"the detector has other classes than the data set"
        )
    record = dataset.records[image_id]
    expected = (len(labels), record.height, record.width)
    if masks and len(labels) and (detections.masks is None or detections.masks.shape != expected):
        got = None if detections.masks is None else tuple(detections.masks.shape)
        return f"expected masks of shape {expected}, got {got}"
    return None


def _records(
    dataset: CocoDataset, image_id: int, detections: Detections, masks: bool, first: int
) -> list[dict[str, Any]]:
    """One record per detection of an image that has no number which is not finite; ids from ``first``."""
    finite = torch.isfinite(detections.boxes).all(1) & torch.isfinite(detections.scores)
    boxes = detections.boxes[finite].double().cpu().numpy()
    boxes[:, 2:] -= boxes[:, :2]
    scores, labels = detections.scores[finite].tolist(), detections.labels[finite].tolist()
    records = [
        {
            "id": first + index,
            "image_id": image_id,
            "category_id": dataset.category_ids[label],
            "bbox": box,
            "area": box[2] * box[3],
            "score": score,
            "iscrowd": 0,
        }
        for index, (box, score, label) in enumerate(zip(boxes.tolist(), scores, labels, strict=True))
    ]
    if masks and detections.masks is not None:
        for record, mask in zip(records, detections.masks[finite].cpu().numpy(), strict=True):
            record.update(segmentation=run_lengths(mask), mask_area=float(mask.sum()))
    return records


def _indexed(content: Mapping[str, Any]) -> COCO:
    """A COCO object with its index built, saying nothing."""
    coco = COCO(print_function=_mute)
    coco.dataset = dict(content)
    coco.createIndex()
    return coco


def _mute(*_: object) -> None:
    """Take the evaluator's messages."""
