"""RetinaNet on any timm body, from torchvision's head, anchors and post-processing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import detection
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss
from torchvision.ops.misc import Conv2dNormActivation

from detkds.detectors.backbones import build_backbone
from detkds.detectors.matching import IGNORED, Objects, match_by_iou
from detkds.detectors.one_stage.branches import Tower, without_convs
from detkds.detectors.one_stage.dense import DenseDetector, head_norm, select_as_torchvision
from detkds.detectors.options import check_choice, check_class_names, check_fraction, check_numbers, check_whole
from detkds.detectors.pyramid import ONE_STAGE_STRIDES, AnchorGrid, one_stage_pyramid
from detkds.errors import ConfigError, Faults
from detkds.registry import DETECTORS
from detkds.structures import Batch, Branch, Detections, Layout

OCTAVE_SCALES = (4.0, 4.0 * 2 ** (1 / 3), 4.0 * 2 ** (2 / 3))
"""Anchor sides in strides: three to the octave (Lin et al. 2017, section 4)."""


@DETECTORS.register("retinanet")
class RetinaNet(DenseDetector):
    """RetinaNet: dense anchors, focal loss (Lin et al. 2017, arXiv 1708.02002).

    Responses are raw class logits and raw deltas ``(dx, dy, dw, dh)`` to the anchors; the losses are
    ``classification`` and ``bbox_regression`` and equal torchvision's.

    Args:
        class_names: one name per class, in label order.
        backbone: ``narrow<W>`` or a timm model with maps at strides 8, 16 and 32.
        backbone_weights: None, ``"pretrained"`` or a file or URL.
        backbone_options: further arguments of the timm model.
        frozen_norm: fixed batch normalisation in the body.
        neck_channels: channels of the pyramid and the head.
        p6_from: ``p5``, or ``c5`` for the body's last map.
        head_convs: 3 x 3 convolutions in each branch of the head.
        head_norm: ``group`` (can be trained from scratch) or ``none`` (the original).
        anchor_scales: sides of the anchors in strides, cut to whole pixels as in torchvision.
        anchor_ratios: heights over widths.
        foreground_iou, background_iou: thresholds of the matching.
        score_threshold, nms_threshold, topk_candidates, max_detections: of the predictions.
        mean, std: input normalisation; None means the body's own.
    """

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
        head_norm: str = "group",
        anchor_scales: Sequence[float] = OCTAVE_SCALES,
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        foreground_iou: float = 0.5,
        background_iou: float = 0.4,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        topk_candidates: int = 1000,
        max_detections: int = 100,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        faults = Faults("retinanet")
        check_class_names(faults, class_names)
        check_whole(faults, neck_channels=neck_channels, topk_candidates=topk_candidates, max_detections=max_detections)
        check_whole(faults, 0, head_convs=head_convs)
        check_choice(faults, ("p5", "c5"), p6_from=p6_from)
        check_choice(faults, ("group", "none"), head_norm=head_norm)
        check_numbers(faults, anchor_scales=anchor_scales, anchor_ratios=anchor_ratios)
        check_fraction(
            faults,
            foreground_iou=foreground_iou,
            background_iou=background_iou,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
        )
        faults.raise_as(ConfigError)
        if background_iou > foreground_iou:
            raise ConfigError(f"retinanet: background_iou: expected <= {foreground_iou}, got {background_iou}")
        body = build_backbone(
            backbone, (8, 16, 32), weights=backbone_weights, frozen_norm=frozen_norm, options=backbone_options
        )
        strides = list(ONE_STAGE_STRIDES.values())
        sizes = [tuple(max(1, int(scale * stride)) for scale in anchor_scales) for stride in strides]
        grid = AnchorGrid(sizes, [tuple(map(float, anchor_ratios))] * len(strides), strides)
        classes = len(class_names)
        model = detection.RetinaNet(
            one_stage_pyramid(body, neck_channels, p6_from),
            classes,
            anchor_generator=grid.generator,
            head=build_head(neck_channels, grid.per_cell, classes, head_convs, head_norm),
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=max_detections,
            fg_iou_thresh=foreground_iou,
            bg_iou_thresh=background_iou,
            topk_candidates=topk_candidates,
        )
        layout = Layout("dense", "sigmoid", classes, grid.per_cell, "deltas", grid.key, tuple(class_names))
        super().__init__(model, grid, layout, class_names, mean or body.mean, std or body.std)
        self._thresholds = (float(foreground_iou), float(background_iou))

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
    """torchvision's head with any number of convolutions in each branch, initialised alike."""
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
