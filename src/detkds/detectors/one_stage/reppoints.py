"""RepPoints on any timm body, from torchvision's deformable convolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from detkds.detectors.backbones import build_backbone
from detkds.detectors.matching import IGNORED, Objects, match_by_iou, match_nearest_point
from detkds.detectors.one_stage.dense import DenseDetector, DenseModel
from detkds.detectors.one_stage.point_set import CONVERSIONS
from detkds.detectors.one_stage.reppoints_head import RepPointsHead
from detkds.detectors.one_stage.suppression import Suppression
from detkds.detectors.options import check_choice, check_class_names, check_fraction, check_whole
from detkds.detectors.pyramid import ONE_STAGE_STRIDES, AnchorGrid, one_stage_pyramid
from detkds.errors import ConfigError, Faults
from detkds.registry import DETECTORS
from detkds.structures import Batch, Detections, Layout

_BASE_SCALE = 4.0
"""The usual size of a level's objects in strides: it chooses their level, and losses are in its units."""

_BETA = 0.11
"""Where the smooth L1 loss turns from squared to absolute."""

_INITIAL_WEIGHT, _REFINED_WEIGHT = 0.5, 1.0


@DETECTORS.register("reppoints")
class RepPoints(DenseDetector):
    """RepPoints: nine points per cell, refined once; a box is their mean and deviation (Yang et al. 2019, 1904.11490).

    Responses are raw class logits and the distances ``(left, top, right, bottom)`` from the cell to the sides of the
    refined box, in strides, so that they compare with those of FCOS. As there and in the authors' code cell ``(i, j)``
    lies at ``(i, j) * stride``. The losses are ``classification`` (focal loss) and ``bbox_initial`` and
    ``bbox_refined`` (smooth L1), weighted 0.5 and 1; each is summed over the positives of the batch and divided by
    their number, at least 1 per image.

    Positive in the initial stage is the cell nearest to an object's centre on the level of its size; for refinement
    and classes the cells are positive whose initial box has enough IoU, and the best of every object. Differs: such a
    best box takes the object of its own highest IoU (as in torchvision), not the last that it is best of, and only
    above IoU 0.

    Args:
        class_names: one name per class, in label order.
        backbone: ``narrow<W>`` or a timm model with maps at strides 8, 16 and 32.
        backbone_weights: None, ``"pretrained"`` or a file or URL.
        backbone_options: further arguments of the timm model.
        frozen_norm: fixed batch normalisation in the body.
        neck_channels: channels of the pyramid and the head.
        p6_from: ``p5``, or ``c5`` for the body's last map.
        head_convs: 3 x 3 convolutions, each with group normalisation, in each branch of the head.
        conversion: of points to a box: ``moment``, ``minmax`` or ``partial_minmax`` (section 3.2).
        foreground_iou, background_iou: thresholds of the refinement stage's matching.
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
        head_convs: int = 3,
        conversion: str = "moment",
        foreground_iou: float = 0.5,
        background_iou: float = 0.4,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        topk_candidates: int = 1000,
        max_detections: int = 100,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        faults = Faults("reppoints")
        check_class_names(faults, class_names)
        check_whole(faults, neck_channels=neck_channels, topk_candidates=topk_candidates, max_detections=max_detections)
        check_whole(faults, 0, head_convs=head_convs)
        check_choice(faults, ("p5", "c5"), p6_from=p6_from)
        check_choice(faults, CONVERSIONS, conversion=conversion)
        check_fraction(
            faults,
            foreground_iou=foreground_iou,
            background_iou=background_iou,
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
        )
        faults.raise_as(ConfigError)
        if background_iou > foreground_iou:
            raise ConfigError(f"reppoints: background_iou: expected <= {foreground_iou}, got {background_iou}")
        body = build_backbone(
            backbone, (8, 16, 32), weights=backbone_weights, frozen_norm=frozen_norm, options=backbone_options
        )
        strides = list(ONE_STAGE_STRIDES.values())
        grid = AnchorGrid([(stride,) for stride in strides], [(1.0,)] * len(strides), strides)
        classes = len(class_names)
        model = DenseModel(
            one_stage_pyramid(body, neck_channels, p6_from),
            RepPointsHead(neck_channels, classes, head_convs, conversion),
        )
        layout = Layout("dense", "sigmoid", classes, 1, "sides", grid.points_key, tuple(class_names))
        super().__init__(model, grid, layout, class_names, mean or body.mean, std or body.std)
        self._thresholds = (float(foreground_iou), float(background_iou))
        self._suppress = Suppression(score_threshold, nms_threshold, topk_candidates, max_detections)

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

    def select(self, heads: dict[str, Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """The best of each level after suppression; see :meth:`DenseDetector.select`."""
        boxes = self.decode(heads["bbox_regression"], torch.cat(anchors))
        return self._suppress(heads["cls_logits"].sigmoid(), boxes, [len(level) for level in anchors], sizes)


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
