"""From scored boxes to detections: the best of each level, without duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import _topk_min
from torchvision.ops import batched_nms, clip_boxes_to_image

from detkds.structures import Detections


@dataclass(frozen=True)
class Suppression:
    """Threshold, best of each level, non-maximum suppression within each class, best of the image.

    The order of these steps, and the results, are those of torchvision's one-stage detectors.

    Attributes:
        score_threshold: detections score more.
        nms_threshold: IoU above which the lower of two boxes of a class is dropped.
        topk_candidates: pairs of box and class that each level may enter.
        max_detections: per image.
    """

    score_threshold: float
    nms_threshold: float
    topk_candidates: int
    max_detections: int

    @torch.no_grad()
    def __call__(
        self, scores: Tensor, boxes: Tensor, lengths: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of each image, best first.

        Args:
            scores: ``(N, M, K)`` in [0, 1].
            boxes: ``(N, M, 4)`` xyxy pixels; cut to the image.
            lengths: rows of each level, M in sum.
            sizes: height and width of each image's valid area.
        """
        images = zip(scores, boxes, sizes, strict=True)
        return [self._detect(score, box, lengths, size) for score, box, size in images]

    def _detect(self, scores: Tensor, boxes: Tensor, lengths: Sequence[int], size: tuple[int, int]) -> Detections:
        classes = scores.shape[1]
        rows, labels, best = [], [], []
        start = 0
        for level in scores.split(list(lengths)):
            flat = level.flatten()
            entered = (flat > self.score_threshold).nonzero()[:, 0]
            values, order = flat[entered].topk(_topk_min(entered, self.topk_candidates, 0))
            index = entered[order]
            best.append(values)
            rows.append(start + index // classes)
            labels.append(index % classes)
            start += len(level)
        label, value = torch.cat(labels), torch.cat(best)
        box = clip_boxes_to_image(boxes[torch.cat(rows)], size)
        kept = batched_nms(box, value, label, self.nms_threshold)[: self.max_detections]
        return Detections(box[kept], value[kept], label[kept])
