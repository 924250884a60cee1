"""COCO average precision of boxes, equal to the reference evaluator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor

from detkds.data.coco import CocoDataset
from detkds.errors import DataError, Faults
from detkds.structures import Detections

MAX_DETECTIONS = 100
"""Detections per image and class that are counted, best first, as in COCO."""


@dataclass(frozen=True)
class Metrics:
    """COCO metrics as fractions in [0, 1]; nan where the ground truth has no such object.

    Attributes:
        ap: mean over IoU 0.50:0.05:0.95 and classes; ``ap50`` and ``ap75`` at one IoU.
        ap_small, ap_medium, ap_large: objects below 32^2, up to 96^2 and above, in square pixels of the annotation.
        per_class: ``ap`` of each class by name.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    per_class: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; None where a metric is undefined."""
        scalars = {name: _or_none(getattr(self, name)) for name in _SCALARS}
        return {**scalars, "per_class": {name: _or_none(value) for name, value in self.per_class.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Metrics:
        """The inverse of :meth:`to_dict`."""
        per_class = {name: _or_nan(value) for name, value in values["per_class"].items()}
        return cls(**{name: _or_nan(values[name]) for name in _SCALARS}, per_class=per_class)


_SCALARS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def evaluate_boxes(dataset: CocoDataset, predictions: Mapping[int, Detections]) -> Metrics:
    """Measure detections against the ground truth of a data set.

    Args:
        predictions: detections by image id, boxes in pixels of the **original** image. An image that is absent counts
            as one without detections. Detections with a number that is not finite cannot match and are left out.

    Raises:
        DataError: the data set has no object to find; a prediction is for an image or a label it does not have.
    """
    _check(dataset, predictions)
    truth = dataset.ground_truth()
    if all(annotation["iscrowd"] for annotation in truth["annotations"]):
        raise DataError("evaluation: the data set has no objects, so average precision is undefined; check its split")
    evaluator = COCOeval_faster(
        _indexed(truth),
        _indexed({**truth, "annotations": _results(dataset, predictions)}),
        "bbox",
        print_function=_mute,
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
        valid = masks[:, : round(height * vertical), : round(width * horizontal)]
        masks = functional.interpolate(valid[None].float(), size=(height, width), mode="nearest")[0] > 0.5
    return Detections(boxes, detections.scores, detections.labels, masks)


def _check(dataset: CocoDataset, predictions: Mapping[int, Detections]) -> None:
    faults = Faults("evaluation")
    unknown = sorted(predictions.keys() - dataset.records.keys())
    if unknown:
        faults.add(f"{len(unknown)} predicted image ids are not in the data set, the first is {unknown[0]}")
    for image_id, detections in predictions.items():
        labels = detections.labels
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < dataset.num_classes:
            faults.add(
                f"image {image_id}: expected labels from 0 to {dataset.num_classes - 1}, "
                f"got {int(labels.min())} to {int(labels.max())}; the detector has other classes than the data set"
            )
            break
    faults.raise_as(DataError)


def _results(dataset: CocoDataset, predictions: Mapping[int, Detections]) -> list[dict[str, Any]]:
    """Detections as the evaluator's records, ids from 1."""
    records: list[dict[str, Any]] = []
    for image_id, detections in predictions.items():
        finite = torch.isfinite(detections.boxes).all(1) & torch.isfinite(detections.scores)
        boxes = detections.boxes[finite].double().cpu().numpy()
        boxes[:, 2:] -= boxes[:, :2]
        scores, labels = detections.scores[finite].tolist(), detections.labels[finite].tolist()
        for box, score, label in zip(boxes.tolist(), scores, labels, strict=True):
            records.append(
                {
                    "id": len(records) + 1,
                    "image_id": image_id,
                    "category_id": dataset.category_ids[label],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "score": score,
                    "iscrowd": 0,
                }
            )
    return records


def _indexed(content: Mapping[str, Any]) -> COCO:
    """A COCO object with its index built, saying nothing."""
    coco = COCO(print_function=_mute)
    coco.dataset = dict(content)
    coco.createIndex()
    return coco


def _mute(*_: object) -> None:
    """Take the evaluator's messages."""
