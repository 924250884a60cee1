"""FCOS on any timm body, from torchvision's head, losses and post-processing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead

from detkds.detectors.matching import IGNORED, Objects, match_by_center
from detkds.detectors.one_stage.branches import Tower, without_convs
from detkds.detectors.one_stage.dense import DenseDetector, DenseOptions, head_norm, select_as_torchvision
from detkds.detectors.options import Positive, with_options_of
from detkds.detectors.pyramid import ONE_STAGE_STRIDES, AnchorGrid, one_stage_pyramid
from detkds.registry import DETECTORS
from detkds.structures import Batch, Branch, Detections

_SILENT_LOGIT = -1e4
"""A logit at which the focal loss of a negative is exactly 0."""


class FCOSOptions(DenseOptions):
    """Options of :class:`FCOS`."""

    center_radius: Positive = 1.5
    """Strides around an object's center within which points are positive."""


@DETECTORS.register("fcos")
class FCOS(DenseDetector):
    """FCOS: one point per cell, distances to four sides, centerness (Tian et al. 2019, arXiv 1904.01355).

    Responses are raw class logits and the distances ``(left, top, right, bottom)`` from the point to the sides,
    after the head's ReLU and in strides: a box is ``point -+ stride * sides``. As in torchvision the point of cell
    ``(i, j)`` is its corner, ``(i, j) * stride``. The losses are ``classification``, ``bbox_regression`` (GIoU) and
    ``bbox_ctrness`` and equal torchvision's.

    Options are those of :class:`FCOSOptions`.
    """

    regions: ClassVar[tuple[str, ...]] = (*DenseDetector.regions, "centerness")

    @with_options_of(FCOSOptions)
    def __init__(self, class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> None:
        given = FCOSOptions.checked("fcos", class_names=class_names, backbone=backbone, **options)
        body = given.body((8, 16, 32))
        strides = list(ONE_STAGE_STRIDES.values())
        grid = AnchorGrid([(stride,) for stride in strides], [(1.0,)] * len(strides), strides)
        classes = len(given.class_names)
        model = detection.FCOS(
            one_stage_pyramid(body, given.neck_channels, given.p6_from),
            classes,
            anchor_generator=grid.generator,
            head=build_head(given.neck_channels, classes, given.head_convs),
            center_sampling_radius=given.center_radius,
            score_thresh=given.score_threshold,
            nms_thresh=given.nms_threshold,
            detections_per_img=given.max_detections,
            topk_candidates=given.topk_candidates,
        )
        super().__init__(given, body, model, grid, regression="sides")

    def region(self, name: str, heads: dict[str, Tensor], anchors: list[Tensor], objects: Objects) -> Tensor:
        """See :meth:`DenseDetector.region`; ``centerness`` is what the losses want of that branch at positives."""
        if name != "centerness":
            return super().region(name, heads, anchors, objects)
        matched = self.match(heads, anchors, objects)
        boxes = torch.cat(anchors)
        points = (boxes[:, :2] + boxes[:, 2:])[None] / 2
        wanted = objects.boxes.gather(1, matched.clamp_min(0)[..., None].expand(-1, -1, 4))
        sides = torch.stack((points - wanted[..., :2], wanted[..., 2:] - points), -1)  # (N, M, x and y, 2)
        share = (sides.amin(-1) / sides.amax(-1)).prod(-1).clamp_min(0).sqrt()
        return torch.where(matched >= 0, share, 0.0)

    def tower(self, head: Any, branch: Branch) -> Tower:
        """See :meth:`DenseDetector.tower`; the centerness is left out."""
        part = head.classification_head if branch == "classification" else head.regression_head
        layers = list(part.conv)
        blocks = [layers[start : start + 3] for start in range(0, len(layers), 3)]
        if branch == "classification":
            return Tower(blocks, lambda maps, _: {"cls_logits": without_convs(part)(maps)})
        return Tower(blocks, lambda maps, _: {"bbox_regression": without_convs(part)(maps)[0]})

    def decode(self, regression: Tensor, anchors: Tensor) -> Tensor:
        """Move the four sides ``(N, M, 4)`` away from the points of ``anchors (M, 4)``."""
        return self.model.box_coder.decode(regression, anchors)

    def match(self, heads: dict[str, Tensor], anchors: list[Tensor], objects: Objects) -> Tensor:
        """By the center and the size of objects; see :func:`match_by_center`."""
        radius = self.model.center_sampling_radius
        return match_by_center(torch.cat(anchors), objects, radius, len(anchors[0]), len(anchors[-1]))

    def losses(self, heads: dict[str, Tensor], anchors: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        """torchvision's losses over all positive points of the batch; points in crowd regions are left out."""
        if batch.targets is None:
            return {}
        objects = Objects.collect(batch.targets)
        boxes = torch.cat(anchors)
        matched = self.match(heads, anchors, objects)
        if objects.crowds is not None:
            silent = (matched == IGNORED)[..., None]
            heads = {**heads, "cls_logits": heads["cls_logits"].masked_fill(silent, _SILENT_LOGIT)}
        return self.model.head.compute_loss(list(batch.targets), heads, [boxes] * len(matched), list(matched))

    def select(self, heads: dict[str, Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """torchvision's post-processing; see :meth:`DenseDetector.select`."""
        return select_as_torchvision(self.model, heads, anchors, sizes)


def build_head(channels: int, classes: int, convs: int) -> FCOSHead:
    """torchvision's head for any number of channels; its own norm needs a multiple of 32."""
    head = FCOSHead(channels, 1, classes, num_convs=0)
    head.classification_head = FCOSClassificationHead(channels, 1, classes, convs, norm_layer=head_norm)
    head.regression_head = FCOSRegressionHead(channels, 1, convs, norm_layer=head_norm)
    return head
