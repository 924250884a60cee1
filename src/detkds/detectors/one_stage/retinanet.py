"""RetinaNet on any timm body, from torchvision's head, anchors and post-processing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss
from torchvision.ops.misc import Conv2dNormActivation

from detkds.detectors.matching import IGNORED, Objects, match_by_iou
from detkds.detectors.one_stage.branches import Tower, without_convs
from detkds.detectors.one_stage.dense import DenseDetector, MatchingOptions, head_norm, select_as_torchvision
from detkds.detectors.options import Positives, with_options_of
from detkds.detectors.pyramid import ONE_STAGE_STRIDES, AnchorGrid, one_stage_pyramid
from detkds.registry import DETECTORS
from detkds.structures import Batch, Branch, Detections

OCTAVE_SCALES = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3))
"""Anchor sides in strides: three to the octave (Lin et al. 2017, section 4)."""


class RetinaNetOptions(MatchingOptions):
    """Options of :class:`RetinaNet`."""

    head_norm: Literal["group", "none"] = "group"
    """Normalization in the head: ``group`` can be trained from scratch, ``none`` is the original."""
    anchor_scales: Positives = OCTAVE_SCALES
    """Sides of the anchors in strides, cut to whole pixels as in torchvision."""
    anchor_ratios: Positives = (0.5, 1.0, 2.0)
    """Heights over widths."""


@DETECTORS.register("retinanet")
class RetinaNet(DenseDetector):
    """RetinaNet: dense anchors, focal loss (Lin et al. 2017, arXiv 1708.02002).

    Responses are raw class logits and raw deltas ``(dx, dy, dw, dh)`` to the anchors; the losses are
    ``classification`` and ``bbox_regression`` and equal torchvision's.

    Options are those of :class:`RetinaNetOptions`.
    """

    @with_options_of(RetinaNetOptions)
    def __init__(self, class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> None:
        given = RetinaNetOptions.checked("retinanet", class_names=class_names, backbone=backbone, **options)
        body = given.body((8, 16, 32))
        grid = AnchorGrid.scaled(given.anchor_scales, given.anchor_ratios, list(ONE_STAGE_STRIDES.values()))
        classes = len(given.class_names)
        model = detection.RetinaNet(
            one_stage_pyramid(body, given.neck_channels, given.p6_from),
            classes,
            anchor_generator=grid.generator,
            head=build_head(given.neck_channels, grid.per_cell, classes, given.head_convs, given.head_norm),
            score_thresh=given.score_threshold,
            nms_thresh=given.nms_threshold,
            detections_per_img=given.max_detections,
            fg_iou_thresh=given.foreground_iou,
            bg_iou_thresh=given.background_iou,
            topk_candidates=given.topk_candidates,
        )
        super().__init__(given, body, model, grid, regression="deltas")
        self._thresholds = (given.foreground_iou, given.background_iou)

    def tower(self, head: Any, branch: Branch) -> Tower:
        """See :meth:`DenseDetector.tower`."""
        part = head.classification_head if branch == "classification" else head.regression_head
        name = "cls_logits" if branch == "classification" else "bbox_regression"
        return Tower(list(part.conv), lambda maps, _: {name: without_convs(part)(maps)})

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """Apply deltas ``(N, M, 4)`` to ``anchors (M, 4)``."""
        rows = anchors.repeat(len(regression), 1)
        return self.model.box_coder.decode_single(regression.flatten(0, 1), rows).view_as(regression)

    def match(self, heads: dict[str, Tensor], anchors: list[Tensor], objects: Objects) -> Tensor:
        """By IoU; see :func:`match_by_iou`."""
        return match_by_iou(torch.cat(anchors), objects, *self._thresholds)

    def losses(self, heads: dict[str, Tensor], anchors: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """Focal loss and L1 of the deltas, each over an image's matched anchors, averaged over images."""
        if batch.targets is None:
            return {}
        objects = Objects.collect(batch.targets)
        boxes = torch.cat(anchors)
        matched = self.match(heads, anchors, objects)  # (N, M)
        logits, deltas = heads["cls_logits"], heads["bbox_regression"]
        foreground = matched >= 0
        images, rows = foreground.nonzero(as_tuple=True)
        indices = matched[images, rows]
        share = 1 / (foreground.sum(1).clamp_min(1) * len(matched))  # (N,)

        wanted = torch.zeros_like(logits)
        wanted[images, rows, objects.labels[images, indices]] = 1.0
        focal = sigmoid_focal_loss(logits, wanted).sum(-1).masked_fill(matched == IGNORED, 0)
        encoded = self.model.box_coder.encode_single(objects.boxes[images, indices], boxes[rows])
        distance = F.l1_loss(deltas[images, rows], encoded, reduction="none").sum(-1)
        return {
            "classification": (focal.sum(1) * share).sum(),
            "bbox_regression": (distance * share[images]).sum(),
        }

    def select(self, heads: dict[str, Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """torchvision's post-processing; see :meth:`DenseDetector.select`."""
        return select_as_torchvision(self.model, heads, anchors, sizes)


def build_head(channels: int, anchors: int, classes: int, convs: int, norm: str) -> RetinaNetHead:
    """torchvision's head with any number of convolutions in each branch, initialized alike."""
    norm_layer = head_norm if norm == "group" else None
    head = RetinaNetHead(channels, anchors, classes, norm_layer=norm_layer)
    for branch in (head.classification_head, head.regression_head):
        convolutions = [Conv2dNormActivation(channels, channels, norm_layer=norm_layer) for _ in range(convs)]
        branch.conv = nn.Sequential(*convolutions)
        for module in branch.conv.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return head
