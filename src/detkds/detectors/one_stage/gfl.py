"""GFL on any timm body: box sides as distributions, and one score for class and localization quality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss
from torchvision.ops.misc import Conv2dNormActivation

from detkds.detectors.matching import IGNORED, Objects, paired_iou
from detkds.detectors.one_stage.atss import match_adaptively, valuable_region
from detkds.detectors.one_stage.branches import Tower
from detkds.detectors.one_stage.dense import DenseDetector, DenseModel, DenseOptions, head_norm
from detkds.detectors.one_stage.quality_focal import distribution_focal_loss, expected_value, quality_focal_loss
from detkds.detectors.options import Count, with_options_of
from detkds.detectors.pyramid import ONE_STAGE_STRIDES, AnchorGrid, one_stage_pyramid
from detkds.precision import full_precision
from detkds.registry import DETECTORS
from detkds.structures import Batch, Branch

_PRIOR_LOGIT = -4.59511985
"""The logit of a score of 0.01, with which training starts."""
_ANCHOR_SCALE = 8.0
"""Sides of the anchors, which only the assignment uses, in strides."""
_BOX_WEIGHT, _DISTRIBUTION_WEIGHT = 2.0, 0.25


class GFLOptions(DenseOptions):
    """Options of :class:`GFL`."""

    reg_max: Count = 16
    """The largest distance of a side in strides."""


@DETECTORS.register("gfl")
class GFL(DenseDetector):
    """GFL: Generalized Focal Loss (Li et al. 2020, arXiv 2006.04388) over adaptively selected samples.

    Responses are raw joint logits of class and localization quality, for each side (left, top, right, bottom) logits
    over its distance from the cell's point, 0 to ``reg_max`` in strides (``box_distribution``), and its expected
    distance in strides (``regression``): a box is ``point -+ stride * sides``. As in
    :mod:`detkds.detectors.one_stage.fcos` the point of cell ``(i, j)`` is ``(i, j) * stride``, so that both can be
    compared cell by cell.

    Losses:
        classification: quality focal loss with beta 2; the target of a positive is the IoU of its box and its object.
        bbox_regression: GIoU, times 2.
        bbox_distribution: distribution focal loss, mean over the sides, times 0.25.

    The first is a sum over the number of positives of the batch. The others are means over the positives, each
    weighted by its own largest score, which receives no gradient from them. That is what the authors' code does; the
    paper divides all three by the number of positives (section 3, equation 6 and its note on the weights).

    Options are those of :class:`GFLOptions`.
    """

    regions: ClassVar[tuple[str, ...]] = ("main", "vlr")

    @with_options_of(GFLOptions)
    def __init__(self, class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> None:
        given = GFLOptions.checked("gfl", class_names=class_names, backbone=backbone, **options)
        body = given.body((8, 16, 32))
        strides = list(ONE_STAGE_STRIDES.values())
        grid = AnchorGrid([(_ANCHOR_SCALE * stride,) for stride in strides], [(1.0,)] * len(strides), strides)
        head = GFLHead(given.neck_channels, len(given.class_names), given.head_convs, given.reg_max, len(strides))
        model = DenseModel(one_stage_pyramid(body, given.neck_channels, given.p6_from), head)
        super().__init__(given, body, model, grid, regression="sides", bins=f"0 to {given.reg_max} strides")

    def tower(self, head: Any, branch: Branch) -> Tower:
        """See :meth:`DenseDetector.tower`."""
        if branch == "classification":
            return Tower(list(head.classification), lambda maps, _: head.classify(maps))
        return Tower(list(head.regression), head.localize)

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """Move the four sides ``(..., M, 4)`` away from the points of ``anchors (M, 4)``."""
        points, strides = _points(anchors)
        offsets = regression * strides
        return torch.cat((points - offsets[..., :2], points + offsets[..., 2:]), dim=-1)

    def match(self, heads: dict[str, Tensor], anchors: list[Tensor], objects: Objects) -> Tensor:
        """Adaptive sample selection; see :func:`match_adaptively`."""
        return match_adaptively(anchors, objects)

    def region(self, name: str, heads: dict[str, Tensor], anchors: list[Tensor], objects: Objects) -> Tensor:
        """See :meth:`DenseDetector.region` and :func:`valuable_region`."""
        if name == "vlr":
            return valuable_region(anchors, objects)
        return super().region(name, heads, anchors, objects)

    def losses(self, heads: dict[str, Tensor], anchors: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The three losses over all positives of the batch; background in crowd regions is left out."""
        if batch.targets is None:
            return {}
        objects = Objects.collect(batch.targets)
        matched = self.match(heads, anchors, objects)
        images, rows = (matched >= 0).nonzero(as_tuple=True)
        indices = matched[images, rows]
        own, truth = torch.cat(anchors)[rows], objects.boxes[images, indices]
        boxes = self.decode(heads["bbox_regression"][images, rows], own)

        logits = heads["cls_logits"]
        quality = torch.zeros_like(logits)
        quality[images, rows, objects.labels[images, indices]] = paired_iou(boxes.detach(), truth)
        focal = quality_focal_loss(logits, quality).sum(-1).masked_fill(matched == IGNORED, 0)

        weight = logits.detach()[images, rows].sigmoid().amax(-1)
        share = weight / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
        overlap = generalized_box_iou_loss(boxes, truth)
        sides = heads["bbox_distribution"][images, rows].unflatten(-1, (4, -1))
        nearness = distribution_focal_loss(sides.flatten(0, 1), _sides(truth, own).flatten()).view(-1, 4).mean(-1)
        return {
            "classification": focal.sum() / max(len(rows), 1),
            "bbox_regression": _BOX_WEIGHT * (overlap * share).sum(),
            "bbox_distribution": _DISTRIBUTION_WEIGHT * (nearness * share).sum(),
        }


class GFLHead(nn.Module):
    """Two branches of convolutions, shared by all levels, and a learned factor for the distributions of each level.

    Gives rows ``cls_logits (N, M, K)``, ``bbox_distribution (N, M, 4 (reg_max + 1))`` and their expected values,
    ``bbox_regression (N, M, 4)``.
    """

    def __init__(self, channels: int, classes: int, convs: int, reg_max: int, levels: int) -> None:
        super().__init__()
        self.classification = _branch(channels, convs)
        self.regression = _branch(channels, convs)
        self.cls_logits = nn.Conv2d(channels, classes, 3, padding=1)
        self.bbox_distribution = nn.Conv2d(channels, 4 * (reg_max + 1), 3, padding=1)
        self.scales = nn.Parameter(torch.ones(levels))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.cls_logits.bias is not None
        nn.init.constant_(self.cls_logits.bias, _PRIOR_LOGIT)

    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:
        """Rows of all levels, from maps ``(N, C, H, W)``."""
        classes = self.classify([self.classification(level) for level in levels])
        return classes | self.localize([self.regression(level) for level in levels], range(len(levels)))

    def classify(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Rows of logits, from the last maps of the branch."""
        return {"cls_logits": _rows([self.cls_logits(level) for level in maps])}

    def localize(self, maps: Sequence[Tensor], places: Sequence[int]) -> dict[str, Tensor]:
        """Rows of distributions and their expected values, from the last maps of the branch on these levels."""
        sides = [self.scales[place] * self.bbox_distribution(level) for place, level in zip(places, maps, strict=True)]
        distribution = full_precision(_rows(sides))
        return {
            "bbox_distribution": distribution,
            "bbox_regression": expected_value(distribution.unflatten(-1, (4, -1))),
        }


def _branch(channels: int, convs: int) -> nn.Sequential:
    return nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=head_norm) for _ in range(convs)))


def _rows(maps: list[Tensor]) -> Tensor:
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in maps], dim=1)


def _points(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Centers ``(M, 2)`` and strides ``(M, 1)``."""
    return (anchors[:, :2] + anchors[:, 2:]) / 2, (anchors[:, 2:3] - anchors[:, :1]) / _ANCHOR_SCALE


def _sides(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Distances in strides from the points of anchors to the sides of their boxes, both ``(R, 4)``."""
    points, strides = _points(anchors)
    return torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), dim=-1) / strides
