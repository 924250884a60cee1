"""What the R-CNN family shares: one pass of proposals and regions over a pyramid, and predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from detkds.detectors.base import Detector
from detkds.detectors.pyramid import TWO_STAGE_STRIDES, two_stage_pyramid
from detkds.detectors.two_stage.masks import paste
from detkds.detectors.two_stage.options import MaskOptions, TwoStageOptions
from detkds.detectors.two_stage.proposals import ProposalNetwork
from detkds.detectors.two_stage.region_rows import Rows
from detkds.detectors.two_stage.regions import POSITIVE_IOU, RegionHead
from detkds.errors import DataError
from detkds.structures import (
    Batch,
    Detections,
    DetectorInfo,
    DetectorOutput,
    FeatureSpec,
    Layout,
    RegionResponse,
    Target,
)

_SMALLEST_SIDE_PX = 1e-2


class TwoStageDetector(Detector):
    """A detector of proposals and regions; :mod:`faster_rcnn` and :mod:`cascade_rcnn` build those that have a name.

    In training mode a pass gives proposals (sampled against the targets where there are any), the responses at them
    and, with targets, the losses ``loss_objectness`` and ``loss_rpn_box_reg`` of the proposals and those of the
    regions. In evaluation mode it stops after the features: a frozen teacher is asked through ``respond_at`` about the
    student's proposals and pays for none of its own. ``predict`` makes proposals in both modes.

    Labels are contiguous from 0 outside; inside, as in torchvision, column 0 is the background.

    Args:
        name: what it is called in configurations and errors.
        options: checked ones.
        region_head: builds the second stage.
    """

    def __init__(
        self, name: str, options: TwoStageOptions, region_head: Callable[[TwoStageOptions], RegionHead]
    ) -> None:
        body = options.body((4, 8, 16, 32))
        super().__init__(options.class_names, options.mean or body.mean, options.std or body.std)
        self.name = name
        pyramid = two_stage_pyramid(body, options.neck_channels, options.norm_layer)
        names = options.class_names
        self.regions = region_head(options)
        self.proposals = ProposalNetwork(options)
        parts = {"backbone": pyramid, "rpn": self.proposals.module, "roi_heads": self.regions.module}
        self.model: Any = nn.ModuleDict(parts)
        self.info = DetectorInfo(
            {level: FeatureSpec(options.neck_channels, stride) for level, stride in TWO_STAGE_STRIDES.items()},
            Layout("region", "softmax", len(names), 1, "deltas", class_names=names),
            isinstance(options, MaskOptions),
            regions=("main", "background"),
        )
        self._select = partial(
            select_detections,
            score=options.score_threshold,
            nms_iou=options.nms_threshold,
            most=options.max_detections,
        )

    def draw_from(self, generator: torch.Generator | None) -> None:
        """Draw the training samples from this generator instead of torch's global one."""
        for sampler in (self.proposals.sampler, self.regions.sampler):
            sampler.generator = generator

    def forward(self, batch: Batch) -> DetectorOutput:
        """One pass; see :meth:`Detector.forward` and the class.

        Raises:
            DataError: masks are to be learned and a target with objects has none.
        """
        features: dict[str, Tensor] = self.model.backbone(self.normalize(batch))
        output = self.restore(DetectorOutput(features, batch.image_sizes, self.info.layout))
        if not self.training:
            return output
        sizes = _sizes(batch.image_sizes)
        targets = None if batch.targets is None else [self._inside(target) for target in batch.targets]
        proposals, output.losses = self.proposals(features, sizes, targets)
        if targets is None:
            response = self.regions.respond(features, proposals, sizes)
        else:
            rows, response, losses = self.regions.fit(features, proposals, targets, sizes)
            output.losses.update(losses)
            proposals, output.region = rows.boxes, partial(_region, rows)
        output.proposals = proposals
        output.logits = {"roi": response.logits}
        output.regression = {"roi": response.regression}
        output.boxes = {"roi": response.boxes}
        return output

    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image; see :meth:`Detector.predict`."""
        features: dict[str, Tensor] = self.model.backbone(self.normalize(batch))
        sizes = _sizes(batch.image_sizes)
        proposals, _ = self.proposals(features, sizes, None)
        response = self.regions.respond(features, proposals, sizes)
        detections = self._select(response, [len(boxes) for boxes in proposals], sizes)
        if not self.info.masks:
            return detections
        boxes = [image.boxes for image in detections]
        columns = torch.cat([image.labels for image in detections]) + 1
        masks = self.regions.masks(features, boxes, columns).split([len(image_boxes) for image_boxes in boxes])
        return [
            replace(image, masks=paste(probabilities, image.boxes, batch.images.shape[-2:]))
            for image, probabilities in zip(detections, masks, strict=True)
        ]

    def restore(self, output: DetectorOutput) -> DetectorOutput:
        """``respond_at`` reads the stored features; see :meth:`Detector.restore`."""
        return replace(output, respond_at=partial(self._respond_at, output.features, output.image_sizes))

    def home_state_dict(self) -> dict[str, Tensor]:
        """The live weights under torchvision's names."""
        return self.model.state_dict()

    @staticmethod
    def is_backbone(name: str) -> bool:
        """Whether a state-dict name belongs to the timm body."""
        return name.startswith("model.backbone.body.")

    def _respond_at(self, features: dict[str, Tensor], image_sizes: Tensor, proposals: list[Tensor]) -> RegionResponse:
        return self.regions.respond(features, proposals, _sizes(image_sizes))

    def _inside(self, target: Target) -> Target:
        """The target without boxes that have no area, its labels counted from 1."""
        boxes = target["boxes"].float()
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        inside = Target(boxes=boxes[kept], labels=target["labels"][kept] + 1)
        if "crowd_boxes" in target:
            inside["crowd_boxes"] = target["crowd_boxes"].float()
        if self.info.masks:
            if "masks" not in target and len(boxes):
                raise DataError(f"{self.name}: expected targets with masks (R, H, W), got boxes and labels alone")
            inside["masks"] = target["masks"][kept] if len(boxes) else boxes.new_zeros(0, 1, 1, dtype=torch.bool)
        return inside


def select_detections(
    response: RegionResponse,
    counts: Sequence[int],
    image_sizes: Sequence[tuple[int, int]],
    *,
    score: float,
    nms_iou: float,
    most: int,
) -> list[Detections]:
    """The best ``most`` detections of each image from responses at its ``counts`` regions, suppressed class by class.

    Args:
        score: classes of a region below it are left out.
        nms_iou: of two boxes of a class that overlap more, the better stays.
    """
    detections = []
    probabilities = functional.softmax(response.logits, 1)[:, 1:]
    boxes = response.boxes.transpose(1, 2)[:, 1:]
    parts = _per_image(probabilities, counts), _per_image(boxes, counts), image_sizes
    for scores, corners, size in zip(*parts, strict=True):
        region, labels = (scores > score).nonzero(as_tuple=True)
        scores, corners = scores[region, labels], clip_boxes_to_image(corners[region, labels], size)
        large = remove_small_boxes(corners, _SMALLEST_SIDE_PX)
        corners, scores, labels = corners[large], scores[large], labels[large]
        best = batched_nms(corners, scores, labels, nms_iou)[:most]
        detections.append(Detections(corners[best], scores[best], labels[best]))
    return detections


def _per_image(rows: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
    """The rows of each image; those of a single one as they are, so that a trace does not fix their number."""
    return [rows] if len(counts) == 1 else rows.split(list(counts))


@torch.no_grad()
def _region(rows: Rows, name: str, boxes: Sequence[Tensor] | None = None) -> Mapping[str, Tensor]:
    """See :class:`~detkds.structures.Regions`."""
    return {"roi": rows.region(name) if boxes is None else rows.region_of(name, boxes, POSITIVE_IOU)}


def _sizes(image_sizes: Tensor) -> list[tuple[int, int]]:
    return [(height, width) for height, width in image_sizes.tolist()]
