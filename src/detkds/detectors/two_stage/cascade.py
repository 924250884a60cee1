"""Three region stages, each trained on the boxes that the one before it has refined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image

from detkds.detectors.two_stage.options import TwoStageOptions
from detkds.detectors.two_stage.region_rows import Rows
from detkds.detectors.two_stage.regions import (
    DELTA_WEIGHTS,
    POSITIVE_IOU,
    RegionHead,
    RegionStage,
    Sizes,
)
from detkds.structures import RegionResponse, Target

STAGE_IOU = (POSITIVE_IOU, 0.6, 0.7)
STAGE_DEVIATIONS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
STAGE_SHARES = (1.0, 0.5, 0.25)
_SMOOTH_L1_BETA = 1.0
_SMALLEST_SIDE_PX = 1.0


class CascadeHead(RegionHead):
    """Stages of rising quality (Cai and Vasconcelos 2018, arXiv 1712.00726, section 4; masks: 2019, arXiv 1906.09756).

    A stage takes regions of IoU .5, .6 and .7 with an object for its positives, moves them by one box for all classes,
    and hands them to the next; the losses of the stages count 1, .5 and .25. Every stage has a mask head of its own.

    The response is about the regions first asked about, so that it can stand beside that of a single stage: logits are
    the mean over the stages, boxes are the last stage's, and the deltas lead there from the first regions.

    Differs: logits are averaged, not probabilities, so that a response says what a prediction is made from; each
    stage's are those at the boxes it was given.
    """

    def __init__(self, options: TwoStageOptions) -> None:
        super().__init__(options)
        self.coder: Any = BoxCoder(DELTA_WEIGHTS)
        stages = []
        for x, y, width, height in STAGE_DEVIATIONS:
            weights = (1 / x, 1 / y, 1 / width, 1 / height)
            stages.append(RegionStage(options, shared_box=True, weights=weights, beta=_SMOOTH_L1_BETA))
        self.stages = stages
        self.module = nn.ModuleList(stages)

    def fit(
        self, features: dict[str, Tensor], proposals: list[Tensor], targets: Sequence[Target], image_sizes: Sizes
    ) -> tuple[Rows, RegionResponse, dict[str, Tensor]]:
        """See :meth:`RegionHead.fit`.

        Later stages see all refined regions and the objects' own boxes, and their losses are taken over a draw from
        these; where a region began as an object's own box, it is in the response but in no later loss.
        """
        first = Rows.assign(proposals, targets, STAGE_IOU[0]).drawn(self.sampler)
        rows, boxes = first, first.boxes
        logits: list[Tensor] = []
        refined = torch.cat(boxes)
        losses: dict[str, Tensor] = {}
        for number, (stage, share) in enumerate(zip(self.stages, STAGE_SHARES, strict=True)):
            if number:
                boxes = self._handed_on(refined, boxes, image_sizes)
                rows = Rows.assign(boxes, targets, STAGE_IOU[number]).without(first.objects).limited(self.sampler)
            scores, deltas = stage(features, rows.boxes)
            for name, loss in stage.losses(features, scores, deltas, rows, targets).items():
                losses[f"{name}_{number + 1}"] = share * loss
            asked = torch.cat(rows.objects).logical_not() if number else slice(None)
            logits.append(scores[asked])
            refined = stage.coder.decode_single(deltas[asked], torch.cat(boxes))
        return first, self._response(logits, refined, first.boxes), losses

    def respond(self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: Sizes) -> RegionResponse:
        """See :meth:`RegionHead.respond`; all stages run, each at the boxes of the one before it."""
        boxes, logits = proposals, []
        refined = torch.cat(proposals)
        for number, stage in enumerate(self.stages):
            if number:
                boxes = self._handed_on(refined, boxes, image_sizes)
            scores, deltas = stage(features, boxes)
            logits.append(scores)
            refined = stage.coder.decode_single(deltas, torch.cat(boxes))
        return self._response(logits, refined, proposals)

    def masks(self, features: dict[str, Tensor], boxes: list[Tensor], columns: Tensor) -> Tensor:
        """See :meth:`RegionHead.masks`: the mean over the stages, all at the detected boxes."""
        return torch.stack([stage.masks(features, boxes, columns).sigmoid() for stage in self.stages]).mean(0)

    def _handed_on(self, refined: Tensor, boxes: list[Tensor], image_sizes: Sizes) -> list[Tensor]:
        """Refined boxes ``(R, 4)`` image by image without gradient, cut to the image, no side under a pixel."""
        parts = refined.detach().split([len(image_boxes) for image_boxes in boxes])
        return [
            _with_area(clip_boxes_to_image(image_boxes, size))
            for image_boxes, size in zip(parts, image_sizes, strict=True)
        ]

    def _response(self, logits: list[Tensor], refined: Tensor, proposals: list[Tensor]) -> RegionResponse:
        mean = torch.stack(logits).mean(0)
        deltas = self.coder.encode_single(refined, torch.cat(proposals))
        columns = mean.shape[1]
        return RegionResponse(
            mean, deltas[..., None].expand(-1, -1, columns), refined[..., None].expand(-1, -1, columns)
        )


def _with_area(boxes: Tensor) -> Tensor:
    """The boxes, enlarged to the right and bottom where a side is shorter than a pixel."""
    return torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + _SMALLEST_SIDE_PX)], dim=1)
