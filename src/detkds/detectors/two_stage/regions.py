"""The second stage of a two-stage detector: what the objects in given regions are, and where exactly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import initLevelMapper

from detkds.detectors.pyramid import TWO_STAGE_STRIDES
from detkds.detectors.two_stage.masks import crop_masks, mask_branch, mask_loss
from detkds.detectors.two_stage.options import MaskOptions, TwoStageOptions
from detkds.detectors.two_stage.region_rows import BACKGROUND, LEFT_OUT, Rows
from detkds.detectors.two_stage.sampling import Sampler
from detkds.precision import full_precision
from detkds.structures import RegionResponse, Target

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""What deltas are multiplied by: the inverse of their usual deviation (.1, .1, .2, .2)."""
POSITIVE_IOU = 0.5
"""The overlap from which a (first) stage takes a region for an object."""
_POOLED = ["p2", "p3", "p4", "p5"]
_SAMPLING_RATIO = 2
_POSITIVE_SHARE = 0.25

Sizes = Sequence[tuple[int, int]]
"""Height and width of each image's valid area in pixels."""


class RegionStage(nn.Module):
    """Classes, deltas and, where asked for, masks of regions; parts and names are torchvision's.

    Args:
        options: what it is built from.
        shared_box: one box for all classes instead of one for each.
        weights: what deltas are multiplied by.
        beta: where the smooth L1 loss of the deltas turns from a square to a line.
    """

    def __init__(
        self,
        options: TwoStageOptions,
        *,
        shared_box: bool = False,
        weights: tuple[float, float, float, float] = DELTA_WEIGHTS,
        beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        columns = len(options.class_names) + 1
        self.coder: Any = BoxCoder(weights)
        self.beta = beta
        self.pool = _region_pool(options.roi_resolution, options.roi_canonical_size)
        self.box_head = box_head(options)
        self.box_predictor = FastRCNNPredictor(options.representation, columns)
        if shared_box:
            self.box_predictor.bbox_pred = nn.Linear(options.representation, 4)
        self.mask_head: nn.Module | None = None
        if isinstance(options, MaskOptions):
            self.mask_pool = _region_pool(options.mask_resolution, options.roi_canonical_size)
            self.mask_head, self.mask_predictor = mask_branch(options)

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``(R, K+1)`` and deltas ``(R, 4 (K+1))``, or ``(R, 4)`` with one box for all classes."""
        pooled = _pooled(self.pool, features, boxes, next(self.box_head.parameters()).dtype)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return full_precision(logits), full_precision(deltas)

    def masks(self, features: dict[str, Tensor], boxes: list[Tensor], columns: Tensor) -> Tensor:
        """Mask logits ``(R, m, m)`` of regions, at one of the ``K+1`` columns for each of them ``(R,)``."""
        assert self.mask_head is not None
        weight: Tensor = self.mask_predictor.get_submodule("mask_fcn_logits").weight  # type: ignore[assignment]
        pooled = _pooled(self.mask_pool, features, boxes, weight.dtype)
        logits = self.mask_predictor(self.mask_head(pooled))
        return full_precision(logits[torch.arange(len(columns), device=columns.device), columns])

    def losses(
        self, features: dict[str, Tensor], logits: Tensor, deltas: Tensor, rows: Rows, targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Cross-entropy and smooth L1 over the rows that count, and binary cross-entropy of the positives' masks."""
        labels, boxes, truth = torch.cat(rows.labels), torch.cat(rows.boxes), rows.truth(targets)
        counted, positive = labels != LEFT_OUT, (labels > BACKGROUND).nonzero()[:, 0]
        total = int(counted.sum())
        column = labels[positive] if deltas.shape[1] > 4 else torch.zeros_like(positive)
        predicted = deltas.view(len(deltas), deltas.shape[1] // 4, 4)[positive, column]
        wanted = self.coder.encode_single(truth, boxes[positive])
        distance = functional.smooth_l1_loss(predicted, wanted, beta=self.beta, reduction="sum")
        losses = {
            "loss_classifier": functional.cross_entropy(logits[counted], labels[counted])
            if total
            else logits.sum() * 0,
            "loss_box_reg": distance / max(1, total),
        }
        if self.mask_head is not None:
            regions, matched = rows.positives()
            masks = self.masks(features, regions, labels[positive])
            crops = [
                crop_masks(target["masks"], boxes, objects, masks.shape[-1])
                for target, boxes, objects in zip(targets, regions, matched, strict=True)
            ]
            losses["loss_mask"] = mask_loss(masks, torch.cat(crops))
        return losses


class RegionHead(ABC):
    """What a two-stage detector asks of its second stage; :class:`SingleHead` and the cascade are two answers.

    Attributes:
        module: everything with weights, under the names of the home library.
        sampler: draws the regions that the losses are taken over.
    """

    module: nn.Module

    def __init__(self, options: TwoStageOptions) -> None:
        self.sampler = Sampler(options.roi_samples, _POSITIVE_SHARE)

    @abstractmethod
    def fit(
        self, features: dict[str, Tensor], proposals: list[Tensor], targets: Sequence[Target], image_sizes: Sizes
    ) -> tuple[Rows, RegionResponse, dict[str, Tensor]]:
        """Proposals drawn against the targets, the response at them, and the losses; labels count from 1."""

    @abstractmethod
    def respond(self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: Sizes) -> RegionResponse:
        """The response at given proposals ``(R_i, 4)`` of each image."""

    @abstractmethod
    def masks(self, features: dict[str, Tensor], boxes: list[Tensor], columns: Tensor) -> Tensor:
        """Mask probabilities ``(R, m, m)`` of detected boxes ``(R_i, 4)``, each at its class's column ``(R,)``."""


class SingleHead(RegionHead):
    """One stage, a box for each class (Ren et al. 2015; masks: He et al. 2017, arXiv 1703.06870, section 3)."""

    def __init__(self, options: TwoStageOptions) -> None:
        super().__init__(options)
        self.module = self.stage = RegionStage(options)

    def fit(
        self, features: dict[str, Tensor], proposals: list[Tensor], targets: Sequence[Target], image_sizes: Sizes
    ) -> tuple[Rows, RegionResponse, dict[str, Tensor]]:
        """See :meth:`RegionHead.fit`; proposals of an IoU of one half with an object are its positives."""
        rows = Rows.assign(proposals, targets, POSITIVE_IOU).drawn(self.sampler)
        logits, deltas = self.stage(features, rows.boxes)
        losses = self.stage.losses(features, logits, deltas, rows, targets)
        return rows, self._response(logits, deltas, rows.boxes), losses

    def respond(self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: Sizes) -> RegionResponse:
        """See :meth:`RegionHead.respond`."""
        logits, deltas = self.stage(features, proposals)
        return self._response(logits, deltas, proposals)

    def masks(self, features: dict[str, Tensor], boxes: list[Tensor], columns: Tensor) -> Tensor:
        """See :meth:`RegionHead.masks`."""
        return self.stage.masks(features, boxes, columns).sigmoid()

    def _response(self, logits: Tensor, deltas: Tensor, proposals: list[Tensor]) -> RegionResponse:
        boxes = self.stage.coder.decode_single(deltas, torch.cat(proposals))
        per_class = (logits.shape[1], 4)
        return RegionResponse(
            logits, deltas.unflatten(1, per_class).transpose(1, 2), boxes.unflatten(1, per_class).transpose(1, 2)
        )


def box_head(options: TwoStageOptions) -> nn.Module:
    """torchvision's layers over a pooled region."""
    channels, side, width = options.neck_channels, options.roi_resolution, options.representation
    if options.box_convs:
        convs = [channels] * options.box_convs
        return FastRCNNConvFCHead((channels, side, side), convs, [width], options.norm_layer)
    return TwoMLPHead(channels * side**2, width)


def _region_pool(resolution: int, canonical_size: int) -> MultiScaleRoIAlign:
    """Pooling with the true strides; torchvision's infers them from the first batch it sees, padding left out."""
    pool = MultiScaleRoIAlign(_POOLED, resolution, _SAMPLING_RATIO, canonical_scale=canonical_size)
    pool.scales = [1 / TWO_STAGE_STRIDES[level] for level in _POOLED]  # type: ignore[assignment]
    pool.map_levels = initLevelMapper(2, 5, canonical_scale=canonical_size)  # type: ignore[assignment]
    return pool


def _pooled(pool: MultiScaleRoIAlign, features: dict[str, Tensor], boxes: list[Tensor], dtype: torch.dtype) -> Tensor:
    maps = {level: features[level].to(dtype) for level in _POOLED}
    return pool(maps, [image_boxes.to(dtype) for image_boxes in boxes], [])
