"""GFL on any timm body: box sides as distributions, and one score for class and localization quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss
from torchvision.ops.misc import Conv2dNormActivation

from detkds.detectors.backbones import build_backbone
from detkds.detectors.matching import IGNORED, Objects, paired_iou
from detkds.detectors.one_stage.atss import match_adaptively, valuable_region
from detkds.detectors.one_stage.branches import Tower
from detkds.detectors.one_stage.dense import DenseDetector, DenseModel, head_norm
from detkds.detectors.one_stage.quality_focal import distribution_focal_loss, expected_value, quality_focal_loss
from detkds.detectors.one_stage.suppression import Suppression
from detkds.detectors.options import check_choice, check_class_names, check_fraction, check_whole
from detkds.detectors.pyramid import ONE_STAGE_STRIDES, AnchorGrid, one_stage_pyramid
from detkds.errors import ConfigError, Faults
from detkds.precision import full_precision
from detkds.registry import DETECTORS
from detkds.structures import Batch, Branch, Detections, Layout

_PRIOR_LOGIT = -4.59511985
"""The logit of a score of 0.01, with which training starts."""
_ANCHOR_SCALE = 8.0
"""Sides of the anchors, which only the assignment uses, in strides."""
_BOX_WEIGHT, _DISTRIBUTION_WEIGHT = 2.0, 0.25


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

    Args:
        class_names: one name per class, in label order.
        backbone: ``narrow<W>`` or a timm model with maps at strides 8, 16 and 32.
        backbone_weights: None, ``"pretrained"`` or a file or URL.
        backbone_options: further arguments of the timm model.
        frozen_norm: fixed batch normalisation in the body.
        neck_channels: channels of the pyramid and the head.
        p6_from: ``p5``, or ``c5`` for the body's last map.
        head_convs: 3 x 3 convolutions, each with group normalisation, in each branch of the head.
        reg_max: the largest distance in strides.
        score_threshold, nms_threshold, topk_candidates, max_detections: of the predictions.
        mean, std: input normalisation; None means the body's own.
    """

    regions: ClassVar[tuple[str, ...]] = ("main", "vlr")

    def __init__(
        self,
        class_names: Sequence[str],
        backbone: str = "resnet50",
        *,
        backbone_weights: str | None = None,
        backbone_options: Mapping[str, Any] | None = None,
        frozen_norm: bool = False,
        neck_channels: int = 256,
        p6_from: str = "p5",
        head_convs: int = 4,
        reg_max: int = 16,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.6,
        topk_candidates: int = 1000,
        max_detections: int = 100,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        faults = Faults("gfl")
        check_class_names(faults, class_names)
        check_whole(faults, neck_channels=neck_channels, topk_candidates=topk_candidates, max_detections=max_detections)
        check_whole(faults, reg_max=reg_max)
        check_whole(faults, 0, head_convs=head_convs)
        check_choice(faults, ("p5", "c5"), p6_from=p6_from)
        check_fraction(faults, score_threshold=score_threshold, nms_threshold=nms_threshold)
        faults.raise_as(ConfigError)
        body = build_backbone(
            backbone, (8, 16, 32), weights=backbone_weights, frozen_norm=frozen_norm, options=backbone_options
        )
        strides = list(ONE_STAGE_STRIDES.values())
        grid = AnchorGrid([(_ANCHOR_SCALE * stride,) for stride in strides], [(1.0,)] * len(strides), strides)
        classes = len(class_names)
        head = GFLHead(neck_channels, classes, head_convs, reg_max, len(strides))
        names, bins = tuple(class_names), f"0 to {reg_max} strides"
        layout = Layout("dense", "sigmoid", classes, 1, "sides", grid.points_key, names, bins)
        model = DenseModel(one_stage_pyramid(body, neck_channels, p6_from), head)
        super().__init__(model, grid, layout, class_names, mean or body.mean, std or body.std)
        self._suppress = Suppression(score_threshold, nms_threshold, topk_candidates, max_detections)

    def tower(self, head: Any, branch: Branch) -> Tower:
        """See :meth:`DenseDetector.tower`."""
        if branch == "classification":
            return Tower(list(head.classification), lambda maps, _: head.classify(maps))
        return Tower(list(head.regression), head.localise)

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

    def select(self, heads: dict[str, Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """The best boxes of each class; see :class:`Suppression`."""
        boxes = self.decode(heads["bbox_regression"], torch.cat(anchors))
        return self._suppress(heads["cls_logits"].sigmoid(), boxes, [len(level) for level in anchors], sizes)


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
        return classes | self.localise([self.regression(level) for level in levels], range(len(levels)))

    def classify(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Rows of logits, from the last maps of the branch."""
        return {"cls_logits": _rows([self.cls_logits(one) for one in maps])}

    def localise(self, maps: Sequence[Tensor], places: Sequence[int]) -> dict[str, Tensor]:
        """Rows of distributions and their expected values, from the last maps of the branch on these levels."""
        sides = [self.scales[place] * self.bbox_distribution(one) for place, one in zip(places, maps, strict=True)]
        distribution = full_precision(_rows(sides))
        return {
            "bbox_distribution": distribution,
            "bbox_regression": expected_value(distribution.unflatten(-1, (4, -1))),
        }


def _branch(channels: int, convs: int) -> nn.Sequential:
    return nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=head_norm) for _ in range(convs)))


def _rows(maps: list[Tensor]) -> Tensor:
    return torch.cat([one.permute(0, 2, 3, 1).flatten(1, 2) for one in maps], dim=1)


def _points(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Centres ``(M, 2)`` and strides ``(M, 1)``."""
    return (anchors[:, :2] + anchors[:, 2:]) / 2, (anchors[:, 2:3] - anchors[:, :1]) / _ANCHOR_SCALE


def _sides(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Distances in strides from the points of anchors to the sides of their boxes, both ``(R, 4)``."""
    points, strides = _points(anchors)
    return torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), dim=-1) / strides
