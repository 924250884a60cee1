"""Running a detector over a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from detkds.data.coco import CocoDataset
from detkds.data.loader import evaluation_batches
from detkds.data.store import ImageStore
from detkds.detectors.base import Detector, evaluating
from detkds.evaluation.coco_ap import rescale
from detkds.structures import Detections


def predict_images(
    detector: Detector,
    dataset: CocoDataset,
    *,
    size: int,
    batch_size: int,
    device: torch.device | str,
    store: ImageStore | None = None,
    workers: int = 0,
) -> Iterator[tuple[int, Detections]]:
    """Id and detections of every image, one by one, on the CPU, in original pixels, labels those of the data set.

    A detector of other classes than the data's is read by their names; what it finds of others is left out.

    The detector predicts in evaluation mode without gradients; the modes of all its parts are put back afterwards.

    Args:
        size: longer side of the network input in pixels.
        store: an ``ImageStore(dataset, size)`` to keep decoded images between calls.
    """
    labels = _labels(detector.class_names, dataset.class_names)
    for batch in evaluation_batches(dataset, size=size, batch_size=batch_size, store=store, workers=workers):
        assert batch.scales is not None, "evaluation batches carry their scales"
        with evaluating(detector), torch.inference_mode():
            predicted = detector.predict(batch.to(device))
        for image_id, detections, scale in zip(batch.image_ids, predicted, batch.scales, strict=True):
            record = dataset.records[image_id]
            known = _relabelled(_on_cpu(detections), labels)
            yield image_id, rescale(known, scale, (record.height, record.width))


def _labels(names: Sequence[str], data: Sequence[str]) -> Tensor | None:
    """The data's label of each of the detector's, -1 where it has none; None where they are the same."""
    if tuple(names) == tuple(data):
        return None
    return torch.tensor([data.index(name) if name in data else -1 for name in names])


def _relabelled(detections: Detections, labels: Tensor | None) -> Detections:
    if labels is None:
        return detections
    given = labels[detections.labels]
    kept = given >= 0
    masks = None if detections.masks is None else detections.masks[kept]
    return Detections(detections.boxes[kept], detections.scores[kept], given[kept], masks)


def _on_cpu(detections: Detections) -> Detections:
    masks = None if detections.masks is None else detections.masks.cpu()
    return Detections(detections.boxes.cpu(), detections.scores.cpu(), detections.labels.cpu(), masks)
