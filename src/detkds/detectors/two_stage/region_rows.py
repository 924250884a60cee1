"""Regions of a batch with the objects they belong to: what a region head's losses are taken over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import box_iou

from detkds.detectors.matching import inside_crowd, of_one_class
from detkds.detectors.two_stage.sampling import Sampler
from detkds.structures import Target

BACKGROUND = 0
LEFT_OUT = -1


@dataclass(frozen=True)
class Rows:
    """Regions of each image, and what they should be.

    Attributes:
        boxes: ``(R_i, 4)``.
        matched: ``(R_i,)`` index of the object that a positive belongs to.
        labels: ``(R_i,)`` its class from 1, ``BACKGROUND``, or ``LEFT_OUT`` of the losses.
        objects: ``(R_i,)`` bool, whether the row is an object's own box.
    """

    boxes: list[Tensor]
    matched: list[Tensor]
    labels: list[Tensor]
    objects: list[Tensor]

    @classmethod
    def assign(cls, boxes: Sequence[Tensor], targets: Sequence[Target], iou: float) -> Rows:
        """Regions and the objects' own boxes behind them, each with the object it overlaps most.

        Rows below ``iou`` are background, or left out where they lie mostly in a crowd region.
        """
        parts = [_assign(image_boxes, target, iou) for image_boxes, target in zip(boxes, targets, strict=True)]
        return cls(*(list(column) for column in zip(*parts, strict=True)))

    def drawn(self, sampler: Sampler) -> Rows:
        """Only the rows that the sampler draws."""
        return self._where(self._draw(sampler))

    def limited(self, sampler: Sampler) -> Rows:
        """All rows, those that the sampler does not draw left out of the losses."""
        drawn = self._draw(sampler)
        labels = [
            image_labels.masked_fill(~keep, LEFT_OUT) for image_labels, keep in zip(self.labels, drawn, strict=True)
        ]
        return replace(self, labels=labels)

    def without(self, rows: Sequence[Tensor]) -> Rows:
        """All rows, the marked ones among the first of each image ``(r_i,)`` bool left out of the losses."""
        labels = []
        for image_labels, marked in zip(self.labels, rows, strict=True):
            more = marked.new_zeros(len(image_labels) - len(marked))
            labels.append(image_labels.masked_fill(torch.cat((marked, more)), LEFT_OUT))
        return replace(self, labels=labels)

    def positives(self) -> tuple[list[Tensor], list[Tensor]]:
        """Boxes ``(P_i, 4)`` and matched objects ``(P_i,)`` of each image's positives."""
        kept = self._where([labels > BACKGROUND for labels in self.labels])
        return kept.boxes, kept.matched

    def region(self, name: str) -> Tensor:
        """``(R, 1)``: 1 for the rows of the region ``main``, which hold objects, or ``background``."""
        labels = torch.cat(self.labels)
        inside = labels == BACKGROUND if name == "background" else labels > BACKGROUND
        return inside.to(self.boxes[0].dtype)[:, None]

    def region_of(self, name: str, objects: Sequence[Tensor], iou: float) -> Tensor:
        """The same where boxes ``(R_i, 4)`` of each image are the objects."""
        rows = Rows.assign(self.boxes, of_one_class(objects, label=BACKGROUND + 1), iou)
        return rows._where([~own for own in rows.objects]).region(name)

    def truth(self, targets: Sequence[Target]) -> Tensor:
        """The objects' boxes ``(P, 4)`` of all positives."""
        _, matched = self.positives()
        return torch.cat([target["boxes"][rows] for target, rows in zip(targets, matched, strict=True)])

    def _draw(self, sampler: Sampler) -> list[Tensor]:
        return [positive | negative for positive, negative in zip(*sampler(self.labels), strict=True)]

    def _where(self, masks: Sequence[Tensor]) -> Rows:
        columns = (self.boxes, self.matched, self.labels, self.objects)
        return Rows(*([values[mask] for values, mask in zip(column, masks, strict=True)] for column in columns))


def _assign(boxes: Tensor, target: Target, iou: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    own = target["boxes"].to(boxes.dtype)
    rows = torch.cat((boxes, own))
    if len(own):
        highest, matched = box_iou(own, rows).max(dim=0)
        labels = target["labels"][matched].masked_fill(highest < iou, BACKGROUND)
    else:
        matched = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
        labels = matched.clone()
    crowds = target.get("crowd_boxes")
    if crowds is not None and len(crowds):
        labels = labels.masked_fill((labels == BACKGROUND) & inside_crowd(rows, crowds), LEFT_OUT)
    return rows, matched, labels, torch.arange(len(rows), device=rows.device) >= len(boxes)
