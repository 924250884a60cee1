"""Which anchor is responsible for which object, for a whole batch at once.

The rules are torchvision's; the results are indices into an image's objects, or :data:`BACKGROUND` or
:data:`IGNORED`. Images differ in their number of objects, so objects are padded to the batch's most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detkds.structures import Target

BACKGROUND = -1
IGNORED = -2
CROWD_OVERLAP = 0.5
"""The share of an anchor inside one crowd region above which it is not counted as background."""

_MOST_PAIRS = 2**24
"""Anchor-object pairs held at once; larger batches are matched a few images at a time."""


@dataclass(frozen=True)
class Objects:
    """The objects of a batch: ``boxes (N, G, 4)``, ``labels (N, G)``, ``valid (N, G)``, ``crowds (N, Q, 4)``.

    Boxes without area are not valid. ``crowds`` is None where no image has a crowd region.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor
    crowds: Tensor | None

    @classmethod
    def collect(cls, targets: Sequence[Target]) -> Objects:
        """Pad the objects of all images to a common number, at least 1."""
        device = targets[0]["boxes"].device
        most = max(1, *(len(target["boxes"]) for target in targets))
        boxes = torch.zeros(len(targets), most, 4, device=device)
        labels = torch.zeros(len(targets), most, dtype=torch.int64, device=device)
        for row, target in enumerate(targets):
            boxes[row, : len(target["boxes"])] = target["boxes"]
            labels[row, : len(target["labels"])] = target["labels"]
        valid = (boxes[..., 2:] > boxes[..., :2]).all(-1)
        crowds = [target.get("crowd_boxes", target["boxes"][:0]).float() for target in targets]
        padded = pad_sequence(crowds, batch_first=True) if any(len(crowd) for crowd in crowds) else None
        return cls(boxes, labels, valid, padded)

    def chunks(self, num_anchors: int) -> Iterator[slice]:
        """Slices of images, small enough for one table of all their pairs."""
        images, most = self.labels.shape
        step = max(1, _MOST_PAIRS // max(1, most * num_anchors))
        for start in range(0, images, step):
            yield slice(start, start + step)


def of_one_class(boxes: Sequence[Tensor], label: int = 0) -> list[Target]:
    """Targets of one class from boxes ``(R_i, 4)`` of each image."""
    return [
        Target(boxes=image_boxes, labels=torch.full_like(image_boxes[:, 0], label, dtype=torch.int64))
        for image_boxes in boxes
    ]


def match_by_iou(anchors: Tensor, objects: Objects, foreground: float, background: float) -> Tensor:
    """Match anchors ``(M, 4)``, or ``(N, M, 4)`` of each image, by IoU: ``(N, M)`` indices (Ren et al. 2015, 3.1.2).

    An anchor takes the object of highest IoU where that is at least ``foreground``; it is background below
    ``background``; and the best anchors of every object, ties included, take their own best object at any IoU.
    """
    anchors = anchors.expand(len(objects.boxes), *anchors.shape[-2:])
    parts = objects.chunks(anchors.shape[1])
    return torch.cat([_match_by_iou(anchors[part], objects, part, foreground, background) for part in parts])


def _match_by_iou(anchors: Tensor, objects: Objects, part: slice, foreground: float, background: float) -> Tensor:
    boxes, valid = objects.boxes[part], objects.valid[part]
    overlap = _intersection(boxes, anchors)  # (n, G, M)
    iou = overlap / (_area(boxes)[..., None] + _area(anchors)[..., None, :] - overlap)
    iou = iou.masked_fill(~valid[..., None], -1.0)
    best_iou, best = iou.max(dim=1)
    matched = best.masked_fill(best_iou < foreground, IGNORED).masked_fill(best_iou < background, BACKGROUND)
    highest = iou.amax(dim=2, keepdim=True)
    rescued = ((iou == highest) & (highest > 0)).any(dim=1)
    matched = torch.where(rescued, best, matched)
    return ignore_crowds(matched, anchors, None if objects.crowds is None else objects.crowds[part])


def match_by_center(anchors: Tensor, objects: Objects, radius: float, first_level: int, last_level: int) -> Tensor:
    """Match the points of square anchors ``(M, 4)``, whose side is the stride: ``(N, M)`` indices.

    A point takes an object where it lies inside its box, within ``radius`` strides of its center, and the largest of
    its four distances is between 4 and 8 strides (from 0 for the ``first_level`` finest anchors, without an upper
    bound for the ``last_level`` coarsest); of several the smallest (Tian et al. 2019, section 3.2, and 2020).
    """
    stride = anchors[:, 2] - anchors[:, 0]
    lower, upper = stride * 4, stride * 8
    lower[:first_level] = 0
    upper[len(upper) - last_level :] = torch.inf
    points = (anchors[:, :2] + anchors[:, 2:]) / 2
    matched = []
    for part in objects.chunks(len(anchors)):
        boxes = objects.boxes[part][:, None]  # (n, 1, G, 4)
        corner = points[None, :, None]  # (1, M, 1, 2)
        distances = torch.cat((corner - boxes[..., :2], boxes[..., 2:] - corner), dim=-1)  # (n, M, G, 4)
        largest = distances.amax(-1)
        offset = (corner - (boxes[..., :2] + boxes[..., 2:]) / 2).abs().amax(-1)
        fits = (distances.amin(-1) > 0) & (offset < radius * stride[:, None])
        fits &= (largest > lower[:, None]) & (largest < upper[:, None]) & objects.valid[part][:, None]
        area = torch.where(fits, _area(boxes), torch.inf)
        smallest, index = area.min(dim=-1)
        nearest = index.masked_fill(smallest == torch.inf, BACKGROUND)
        crowds = None if objects.crowds is None else objects.crowds[part]
        matched.append(ignore_crowds(nearest, anchors, crowds))
    return torch.cat(matched)


def match_nearest_point(points: Tensor, strides: Tensor, objects: Objects, scale: float) -> Tensor:
    """Match each object to one of the points ``(M, 2)`` of levels with ``strides (M,)``: ``(N, M)`` indices.

    An object belongs to the level of stride ``2 ** floor(log2(sqrt(width * height) / scale))``, or the nearest to it
    that there is; there it wants the point nearest to its center, by the distance in its own widths and heights. A
    point that several objects want takes the nearest of them, the first of equally near ones; the others go without
    (Yang et al. 2019, RepPoints, section 4.2, with the distance of the authors' code). All other points are
    background.
    """
    level = strides.log2()
    matched = []
    for part in objects.chunks(len(points)):
        boxes, valid = objects.boxes[part], objects.valid[part]
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(torch.finfo(boxes.dtype).eps)  # (n, G, 2)
        wanted = (sides / scale).log2().mean(-1).floor().clamp(level.min(), level.max())
        centers = (boxes[..., :2] + boxes[..., 2:]) / 2
        distance = ((points - centers[:, :, None]) / sides[:, :, None]).norm(dim=-1)  # (n, G, M)
        distance = torch.where((level == wanted[..., None]) & valid[..., None], distance, torch.inf)
        nearest, chosen = distance.min(dim=2, keepdim=True)
        claims = torch.full_like(distance, torch.inf).scatter_(2, chosen, nearest)
        smallest, index = claims.min(dim=1)
        matched.append(index.masked_fill(smallest == torch.inf, BACKGROUND))
    return torch.cat(matched)


def ignore_crowds(matched: Tensor, anchors: Tensor, crowds: Tensor | None) -> Tensor:
    """``matched (N, M)`` with background anchors that lie mostly inside one crowd region ``(N, Q, 4)`` ignored."""
    if crowds is None:
        return matched
    return matched.masked_fill((matched == BACKGROUND) & inside_crowd(anchors, crowds), IGNORED)


def inside_crowd(boxes: Tensor, crowds: Tensor) -> Tensor:
    """Whether more than half of each box ``(..., M, 4)`` lies in one of ``crowds (..., Q, 4)``: ``(..., M)``."""
    share = _intersection(crowds, boxes) / _area(boxes)[..., None, :].clamp_min(torch.finfo(boxes.dtype).tiny)
    return (share > CROWD_OVERLAP).any(dim=-2)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of boxes that stand in pairs: two ``(..., 4)`` to ``(...)``; 0 for two boxes without area."""
    corner = torch.maximum(boxes[..., :2], others[..., :2])
    overlap = (torch.minimum(boxes[..., 2:], others[..., 2:]) - corner).clamp_min(0).prod(-1)
    union = _area(boxes) + _area(others) - overlap
    return overlap / union.clamp_min(torch.finfo(union.dtype).tiny)


def _intersection(boxes: Tensor, others: Tensor) -> Tensor:
    """Areas shared by ``boxes (..., G, 4)`` and ``others (..., M, 4)``: ``(..., G, M)``."""
    boxes, others = boxes[..., :, None, :], others[..., None, :, :]
    width = torch.minimum(boxes[..., 2], others[..., 2]) - torch.maximum(boxes[..., 0], others[..., 0])
    height = torch.minimum(boxes[..., 3], others[..., 3]) - torch.maximum(boxes[..., 1], others[..., 1])
    return width.clamp_(min=0) * height.clamp_(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
