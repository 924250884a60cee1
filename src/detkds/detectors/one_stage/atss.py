"""Adaptive training sample selection: each object sets its own IoU threshold (Zhang et al. 2020, arXiv 1912.02424)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkds.detectors.matching import BACKGROUND, Objects, ignore_crowds, paired_iou


def match_adaptively(anchors: Sequence[Tensor], objects: Objects, candidates: int = 9) -> Tensor:
    """Match the anchors ``(M_l, 4)`` of each level: ``(N, M)`` indices, as in :mod:`detkds.detectors.matching`.

    The candidates of an object are, on each level, the anchors whose centers are nearest to its own. A candidate
    takes the object where their IoU is at least the mean plus the standard deviation of the IoUs of all the object's
    candidates, and where the candidate's center lies inside the object; of several objects it takes the one of highest
    IoU (Algorithm 1). The deviation is that of a sample (over n - 1), as in the authors' code.

    Args:
        candidates: on each level; fewer where it has fewer anchors.
    """
    rows = torch.cat(list(anchors))
    return torch.cat([_match(anchors, rows, objects, part, candidates) for part in objects.chunks(len(rows))])


def valuable_region(anchors: Sequence[Tensor], objects: Objects, candidates: int = 9, share: float = 0.25) -> Tensor:
    """The valuable localization region of LD (Zheng et al., CVPR 2022): weights ``(N, M)`` of anchors.

    An anchor is of an object's region where their DIoU is at least ``share`` times the IoU from which anchors match the
    object, and below it. Its weight is the IoU, the highest of all objects whose region it is of, as in the authors'
    code; others weigh 0.
    """
    rows = torch.cat(list(anchors))
    parts = objects.chunks(len(rows))
    return torch.cat([_valuable(anchors, rows, objects, part, candidates, share) for part in parts])


def _valuable(
    anchors: Sequence[Tensor], rows: Tensor, objects: Objects, part: slice, candidates: int, share: float
) -> Tensor:
    boxes, valid = objects.boxes[part, :, None], objects.valid[part, :, None]  # (n, G, 1, 4), (n, G, 1)
    threshold = _threshold(paired_iou(rows[_nearest(anchors, boxes.squeeze(2), candidates)], boxes))
    iou = paired_iou(rows, boxes)  # (n, G, M)
    outer = torch.maximum(rows[:, 2:], boxes[..., 2:]) - torch.minimum(rows[:, :2], boxes[..., :2])
    offset = (_center(rows) - _center(boxes)).square().sum(-1)
    distance = offset / outer.square().sum(-1).clamp_min(torch.finfo(outer.dtype).tiny)
    inside = (iou - distance >= share * threshold) & (iou - distance < threshold) & valid
    return iou.masked_fill(~inside, 0.0).amax(1)


def _match(anchors: Sequence[Tensor], rows: Tensor, objects: Objects, part: slice, candidates: int) -> Tensor:
    boxes, valid = objects.boxes[part], objects.valid[part]
    chosen = _nearest(anchors, boxes, candidates)  # (n, G, C)
    near = rows[chosen]  # (n, G, C, 4)
    iou = paired_iou(near, boxes[:, :, None])
    fits = (iou >= _threshold(iou)) & _center_inside(near, boxes[:, :, None]) & valid[..., None]

    # Candidates of all objects of an image in one row, and for each anchor the best that chose it.
    images, most = valid.shape
    chosen, iou = chosen.flatten(1), iou.masked_fill(~fits, -1.0).flatten(1)
    number = torch.arange(most, device=rows.device).repeat_interleave(iou.shape[1] // most).expand(images, -1)
    best = iou.new_full((images, len(rows)), -1.0).scatter_reduce(1, chosen, iou, "amax")
    wins = (iou >= 0) & (iou == best.gather(1, chosen))
    claims = number.masked_fill(~wins, most)  # the first of equally good objects wins
    first = number.new_full((images, len(rows)), most).scatter_reduce(1, chosen, claims, "amin")
    matched = first.masked_fill(first == most, BACKGROUND)
    return ignore_crowds(matched, rows, None if objects.crowds is None else objects.crowds[part])


def _threshold(iou: Tensor) -> Tensor:
    """The IoU ``(n, G, 1)`` from which an object's candidates match it, from those of all candidates ``(n, G, C)``."""
    deviation, mean = torch.std_mean(iou, dim=-1, keepdim=True, correction=min(1, iou.shape[-1] - 1))
    return mean + deviation


def _nearest(anchors: Sequence[Tensor], boxes: Tensor, candidates: int) -> Tensor:
    """Rows ``(n, G, C)`` of the anchors of each level whose centers are nearest to those of ``boxes (n, G, 4)``."""
    centers = _center(boxes)
    rows, start = [], 0
    for level in anchors:
        distance = (centers[:, :, None] - _center(level)).square().sum(-1)  # (n, G, M_l)
        nearest = distance.topk(min(candidates, len(level)), dim=-1, largest=False).indices
        rows.append(start + nearest)
        start += len(level)
    return torch.cat(rows, dim=-1)


def _center(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _center_inside(anchors: Tensor, boxes: Tensor) -> Tensor:
    center = _center(anchors)
    return ((center > boxes[..., :2]) & (center < boxes[..., 2:])).all(-1)
