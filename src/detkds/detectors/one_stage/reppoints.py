"""RepPoints on any timm body, from torchvision's deformable convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from detkds.detectors.matching import IGNORED, Objects, match_by_iou, match_nearest_point
from detkds.detectors.one_stage.dense import DenseDetector, DenseModel, MatchingOptions
from detkds.detectors.one_stage.point_set import Conversion
from detkds.detectors.one_stage.reppoints_head import RepPointsHead
from detkds.detectors.options import CountOrNone, with_options_of
from detkds.detectors.pyramid import ONE_STAGE_STRIDES, AnchorGrid, one_stage_pyramid
from detkds.registry import DETECTORS
from detkds.structures import Batch

_BASE_SCALE = 4.0
"""The usual size of a level's objects in strides: it chooses their level, and losses are in its units."""

_BETA = 0.11
"""Where the smooth L1 loss turns from squared to absolute."""

_INITIAL_WEIGHT, _REFINED_WEIGHT = 0.5, 1.0


class RepPointsOptions(MatchingOptions):
    """Options of :class:`RepPoints`; the thresholds of matching are those of the refinement stage."""

    head_convs: CountOrNone = 3
    """3 x 3 convolutions, each with group normalization, in each branch of the head."""
    conversion: Conversion = "moment"
    """Of points to a box (section 3.2)."""


@DETECTORS.register("reppoints")
class RepPoints(DenseDetector):
    """RepPoints: nine points per cell, refined once; a box is their mean and deviation (Yang et al. 2019, 1904.11490).

    Responses are raw class logits and the distances ``(left, top, right, bottom)`` from the cell to the sides of the
    refined box, in strides, so that they compare with those of FCOS. As there and in the authors' code cell ``(i, j)``
    lies at ``(i, j) * stride``. The losses are ``classification`` (focal loss) and ``bbox_initial`` and
    ``bbox_refined`` (smooth L1), weighted 0.5 and 1; each is summed over the positives of the batch and divided by
    their number, at least 1 per image.

    Positive in the initial stage is the cell nearest to an object's center on the level of its size; for refinement
    and classes the cells are positive whose initial box has enough IoU, and the best of every object. Differs: such a
    best box takes the object of its own highest IoU (as in torchvision), not the last that it is best of, and only
    above IoU 0.

    Options are those of :class:`RepPointsOptions`.
    """

    @with_options_of(RepPointsOptions)
    def __init__(self, class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> None:
        given = RepPointsOptions.checked("reppoints", class_names=class_names, backbone=backbone, **options)
        body = given.body((8, 16, 32))
        strides = list(ONE_STAGE_STRIDES.values())
        grid = AnchorGrid([(stride,) for stride in strides], [(1.0,)] * len(strides), strides)
        model = DenseModel(
            one_stage_pyramid(body, given.neck_channels, given.p6_from),
            RepPointsHead(given.neck_channels, len(given.class_names), given.head_convs, given.conversion),
        )
        super().__init__(given, body, model, grid, regression="sides")
        self._thresholds = (given.foreground_iou, given.background_iou)

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """Move the four sides ``(N, M, 4)`` away from the cells of ``anchors (M, 4)``."""
        points, strides = _cells(anchors)
        low, high = (regression * strides[:, None]).split(2, dim=-1)
        return torch.cat((points - low, points + high), dim=-1)

    def match(self, heads: dict[str, Tensor], anchors: list[Tensor], objects: Objects) -> Tensor:
        """The initial boxes by IoU; see :func:`match_by_iou`."""
        initial = self.decode(heads["initial_regression"].detach(), torch.cat(anchors))
        return match_by_iou(initial, objects, *self._thresholds)

    def losses(self, heads: dict[str, Tensor], anchors: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The three losses; see the class. Initial boxes in crowd regions are left out of ``classification``."""
        if batch.targets is None:
            return {}
        objects = Objects.collect(batch.targets)
        cells = torch.cat(anchors)
        points, strides = _cells(cells)
        nearest = match_nearest_point(points, strides, objects, _BASE_SCALE)  # (N, M)
        initial = heads["initial_regression"]
        matched = self.match(heads, anchors, objects)  # (N, M)

        logits = heads["cls_logits"]
        images, rows = (matched >= 0).nonzero(as_tuple=True)
        wanted = torch.zeros_like(logits)
        wanted[images, rows, objects.labels[images, matched[images, rows]]] = 1.0
        focal = sigmoid_focal_loss(logits, wanted).sum(-1).masked_fill(matched == IGNORED, 0)
        return {
            "classification": focal.sum() / _positives(matched),
            "bbox_initial": _INITIAL_WEIGHT * _distance(initial, nearest, cells, objects),
            "bbox_refined": _REFINED_WEIGHT * _distance(heads["bbox_regression"], matched, cells, objects),
        }


def _cells(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Points ``(M, 2)`` and strides ``(M,)`` of square anchors ``(M, 4)``, whose side is the stride."""
    return (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2] - anchors[:, 0]


def _positives(matched: Tensor) -> Tensor:
    """Positives of the batch, at least 1 for each image."""
    return (matched >= 0).sum(1).clamp_min(1).sum()


def _distance(sides: Tensor, matched: Tensor, cells: Tensor, objects: Objects) -> Tensor:
    """Smooth L1 between the sides ``(N, M, 4)`` of positive cells and those of their objects, in usual sizes."""
    images, rows = (matched >= 0).nonzero(as_tuple=True)
    points, strides = _cells(cells[rows])
    low, high = objects.boxes[images, matched[images, rows]].split(2, dim=-1)
    wanted = torch.cat((points - low, high - points), dim=-1) / strides[:, None]
    loss = F.smooth_l1_loss(sides[images, rows] / _BASE_SCALE, wanted / _BASE_SCALE, reduction="sum", beta=_BETA)
    return loss / _positives(matched)
