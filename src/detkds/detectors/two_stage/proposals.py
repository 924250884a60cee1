"""The first stage of a two-stage detector: boxes that may hold an object of any class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers

from detkds.detectors.matching import BACKGROUND, IGNORED, Objects, match_by_iou
from detkds.detectors.pyramid import TWO_STAGE_STRIDES, AnchorGrid
from detkds.detectors.two_stage.options import TwoStageOptions
from detkds.detectors.two_stage.sampling import Sampler
from detkds.precision import full_precision
from detkds.structures import Target

_FOREGROUND_IOU, _BACKGROUND_IOU, _NMS_IOU = 0.7, 0.3, 0.7
_POSITIVE_SHARE = 0.5


class ProposalNetwork:
    """The region proposal network (Ren et al. 2015, arXiv 1506.01497, section 3.1) on a feature pyramid.

    Attributes:
        module: torchvision's network, whose head and selection are used; ``grid`` gives the anchors.
        sampler: draws the anchors that the losses are taken over.
    """

    def __init__(self, options: TwoStageOptions) -> None:
        strides = list(TWO_STAGE_STRIDES.values())
        self.grid = AnchorGrid.scaled(options.anchor_scales, options.anchor_ratios, strides)
        self.sampler = Sampler(options.rpn_samples, _POSITIVE_SHARE)
        self.module: Any = RegionProposalNetwork(
            self.grid.generator,
            RPNHead(options.neck_channels, self.grid.per_cell, conv_depth=options.rpn_convs),
            _FOREGROUND_IOU,
            _BACKGROUND_IOU,
            options.rpn_samples,
            _POSITIVE_SHARE,
            {"training": options.rpn_pre_nms, "testing": options.rpn_pre_nms_predict},
            {"training": options.rpn_post_nms, "testing": options.rpn_post_nms_predict},
            _NMS_IOU,
        )
        self.module.fg_bg_sampler = self.sampler

    def __call__(
        self, features: dict[str, Tensor], image_sizes: Sequence[tuple[int, int]], targets: list[Target] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals ``(R_i, 4)`` of each image, without gradient, and with targets the losses."""
        levels = list(features.values())
        anchors = self.grid(levels)
        objectness, deltas = concat_box_prediction_layers(*self.module.head(levels))
        objectness, deltas = full_precision(objectness), full_precision(deltas)
        images, boxes = len(image_sizes), torch.cat(anchors)
        with torch.no_grad():
            decoded = self.module.box_coder.decode(deltas.detach(), [boxes] * images).view(images, -1, 4)
            lengths = [len(level) for level in anchors]
            proposals, _ = self.module.filter_proposals(decoded, objectness, image_sizes, lengths)
        return proposals, {} if targets is None else self._losses(objectness, deltas, boxes, targets)

    def _losses(self, objectness: Tensor, deltas: Tensor, boxes: Tensor, targets: list[Target]) -> dict[str, Tensor]:
        objects = Objects.collect(targets)
        matched = match_by_iou(boxes, objects, _FOREGROUND_IOU, _BACKGROUND_IOU)
        labels = (matched >= 0).float().masked_fill(matched == IGNORED, BACKGROUND)
        if objects.crowds is not None and not bool((labels >= 0).any()):
            return {"loss_objectness": objectness.sum() * 0, "loss_rpn_box_reg": deltas.sum() * 0}
        truth = objects.boxes.gather(1, matched.clamp_min(0)[..., None].expand(-1, -1, 4))
        wanted = self.module.box_coder.encode(list(truth), [boxes] * len(targets))
        losses = self.module.compute_loss(objectness, deltas, list(labels), wanted)
        return dict(zip(("loss_objectness", "loss_rpn_box_reg"), losses, strict=True))
