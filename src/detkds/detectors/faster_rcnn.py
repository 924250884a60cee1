"""Faster R-CNN on any timm body, from torchvision's proposal network and region heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, box_iou
from torchvision.ops.poolers import initLevelMapper

from detkds.detectors.backbones import build_backbone
from detkds.detectors.base import Detector
from detkds.detectors.matching import BACKGROUND, IGNORED, Objects, inside_crowd, match_by_iou
from detkds.detectors.options import check_class_names, check_fraction, check_numbers, check_whole
from detkds.detectors.pyramid import TWO_STAGE_STRIDES, AnchorGrid, full_precision, two_stage_pyramid
from detkds.detectors.sampling import Sampler
from detkds.errors import ConfigError, Faults
from detkds.registry import DETECTORS
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

_POOLED = ["p2", "p3", "p4", "p5"]
_RPN_IOU = (0.7, 0.3)


@DETECTORS.register("faster_rcnn")
class FasterRCNN(Detector):
    """Faster R-CNN with a feature pyramid (Ren et al. 2015, arXiv 1506.01497; Lin et al. 2017, arXiv 1612.03144).

    In training mode a pass gives proposals (sampled against the targets where there are any), the responses at them
    and, with targets, the losses ``loss_objectness``, ``loss_rpn_box_reg``, ``loss_classifier`` and ``loss_box_reg``.
    In evaluation mode it stops after the features: a frozen teacher is asked through ``respond_at`` about the
    student's proposals and pays for none of its own. ``predict`` makes proposals in both modes.

    Labels are contiguous from 0 outside; inside, as in torchvision, column 0 is the background.

    Args:
        class_names: one name per class, in label order.
        backbone: ``narrow<W>`` or a timm model with maps at strides 4, 8, 16 and 32.
        backbone_weights: None, ``"pretrained"`` or a file or URL.
        backbone_options: further arguments of the timm model.
        frozen_norm: fixed batch normalisation in the body.
        neck_channels: channels of the pyramid.
        representation: width of the two fully connected layers over a region.
        roi_resolution: cells per side that a region is pooled to; most of a pass on a CPU goes there.
        roi_canonical_size: square root of the area in pixels of regions that are pooled from p4.
        anchor_scales: sides of the anchors in strides, cut to whole pixels.
        anchor_ratios: heights over widths.
        rpn_samples, roi_samples: anchors and proposals per image that the losses are taken over.
        rpn_pre_nms, rpn_post_nms: proposals per image before (for each level) and after suppression, while training.
        rpn_pre_nms_predict, rpn_post_nms_predict: the same for predictions.
        score_threshold, nms_threshold, max_detections: of the predictions.
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
        representation: int = 1024,
        roi_resolution: int = 7,
        roi_canonical_size: int = 224,
        anchor_scales: Sequence[float] = (8.0,),
        anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        rpn_samples: int = 256,
        roi_samples: int = 512,
        rpn_pre_nms: int = 2000,
        rpn_post_nms: int = 2000,
        rpn_pre_nms_predict: int = 1000,
        rpn_post_nms_predict: int = 1000,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.5,
        max_detections: int = 100,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        faults = Faults("faster_rcnn")
        check_class_names(faults, class_names)
        check_whole(
            faults,
            neck_channels=neck_channels,
            representation=representation,
            roi_resolution=roi_resolution,
            roi_canonical_size=roi_canonical_size,
            rpn_samples=rpn_samples,
            roi_samples=roi_samples,
            rpn_pre_nms=rpn_pre_nms,
            rpn_post_nms=rpn_post_nms,
            rpn_pre_nms_predict=rpn_pre_nms_predict,
            rpn_post_nms_predict=rpn_post_nms_predict,
            max_detections=max_detections,
        )
        check_numbers(faults, anchor_scales=anchor_scales, anchor_ratios=anchor_ratios)
        check_fraction(faults, score_threshold=score_threshold, nms_threshold=nms_threshold)
        faults.raise_as(ConfigError)
        body = build_backbone(
            backbone, (4, 8, 16, 32), weights=backbone_weights, frozen_norm=frozen_norm, options=backbone_options
        )
        super().__init__(class_names, mean or body.mean, std or body.std)
        strides = list(TWO_STAGE_STRIDES.values())
        sizes = [tuple(max(1, int(scale * stride)) for scale in anchor_scales) for stride in strides]
        self.grid = AnchorGrid(sizes, [tuple(map(float, anchor_ratios))] * len(strides), strides)
        self.model: Any = detection.FasterRCNN(
            two_stage_pyramid(body, neck_channels),
            rpn_anchor_generator=self.grid.generator,
            rpn_pre_nms_top_n_train=rpn_pre_nms,
            rpn_post_nms_top_n_train=rpn_post_nms,
            rpn_pre_nms_top_n_test=rpn_pre_nms_predict,
            rpn_post_nms_top_n_test=rpn_post_nms_predict,
            rpn_fg_iou_thresh=_RPN_IOU[0],
            rpn_bg_iou_thresh=_RPN_IOU[1],
            box_roi_pool=_region_pool(roi_resolution, roi_canonical_size),
            box_head=TwoMLPHead(neck_channels * roi_resolution**2, representation),
            box_predictor=FastRCNNPredictor(representation, len(class_names) + 1),
            box_score_thresh=score_threshold,
            box_nms_thresh=nms_threshold,
            box_detections_per_img=max_detections,
        )
        self.samplers = (Sampler(rpn_samples, 0.5), Sampler(roi_samples, 0.25))
        self.model.rpn.fg_bg_sampler, self.model.roi_heads.fg_bg_sampler = self.samplers
        self.info = DetectorInfo(
            {level: FeatureSpec(neck_channels, stride) for level, stride in TWO_STAGE_STRIDES.items()},
            Layout("region", "softmax", len(class_names), 1, "deltas", class_names=tuple(class_names)),
        )

    def draw_from(self, generator: torch.Generator | None) -> None:
        """Draw the training samples from this generator instead of torch's global one."""
        for sampler in self.samplers:
            sampler.generator = generator

    def forward(self, batch: Batch) -> DetectorOutput:
        """One pass; see :meth:`Detector.forward` and the class."""
        features: dict[str, Tensor] = self.model.backbone(self.normalise(batch))
        output = self.restore(DetectorOutput(features, batch.image_sizes, self.info.layout))
        if not self.training:
            return output
        targets = None if batch.targets is None else [_shifted(target) for target in batch.targets]
        proposals, output.losses = self._propose(features, batch.image_sizes, targets)
        labels: list[Tensor] = []
        wanted: list[Tensor] = []
        if targets is not None:
            kept = [_outside_crowds(*pair) for pair in zip(proposals, targets, strict=True)]
            proposals, _, labels, wanted = self.model.roi_heads.select_training_samples(kept, targets)
        logits, deltas = self._regions(features, proposals)
        if targets is not None:
            output.losses.update(_region_losses(logits, deltas, labels, wanted))
        response = self._response(logits, deltas, proposals)
        output.proposals = proposals
        output.logits = {"roi": response.logits}
        output.regression = {"roi": response.regression}
        output.boxes = {"roi": response.boxes}
        return output

    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image; see :meth:`Detector.predict`."""
        features: dict[str, Tensor] = self.model.backbone(self.normalise(batch))
        proposals, _ = self._propose(features, batch.image_sizes, None)
        logits, deltas = self._regions(features, proposals)
        found = self.model.roi_heads.postprocess_detections(logits, deltas, proposals, _sizes(batch.image_sizes))
        return [Detections(boxes, scores, labels - 1) for boxes, scores, labels in zip(*found, strict=True)]

    def restore(self, output: DetectorOutput) -> DetectorOutput:
        """``respond_at`` reads the stored features; see :meth:`Detector.restore`."""
        return replace(output, respond_at=partial(self._respond, output.features))

    def home_state_dict(self) -> dict[str, Tensor]:
        """The live weights under torchvision's names."""
        return self.model.state_dict()

    @staticmethod
    def is_backbone(name: str) -> bool:
        """Whether a state-dict name belongs to the timm body."""
        return name.startswith("model.backbone.body.")

    def _propose(
        self, features: dict[str, Tensor], image_sizes: Tensor, targets: list[Target] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals ``(R_i, 4)`` of each image, without gradient, and the proposal network's losses."""
        rpn = self.model.rpn
        levels = list(features.values())
        objectness, deltas = rpn.head(levels)
        anchors = self.grid(levels)
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        objectness, deltas = full_precision(objectness), full_precision(deltas)
        images, boxes = len(image_sizes), torch.cat(anchors)
        with torch.no_grad():
            decoded = rpn.box_coder.decode(deltas.detach(), [boxes] * images).view(images, -1, 4)
            proposals, _ = rpn.filter_proposals(decoded, objectness, _sizes(image_sizes), [len(a) for a in anchors])
        if targets is None:
            return proposals, {}
        objects = Objects.collect(targets)
        matched = match_by_iou(boxes, objects, *_RPN_IOU)
        labels = (matched >= 0).float().masked_fill(matched == IGNORED, BACKGROUND)
        if objects.crowds is not None and not bool((labels >= 0).any()):
            return proposals, {"loss_objectness": objectness.sum() * 0, "loss_rpn_box_reg": deltas.sum() * 0}
        truth = objects.boxes.gather(1, matched.clamp_min(0)[..., None].expand(-1, -1, 4))
        wanted = rpn.box_coder.encode(list(truth), [boxes] * images)
        losses = rpn.compute_loss(objectness, deltas, list(labels), wanted)
        return proposals, dict(zip(("loss_objectness", "loss_rpn_box_reg"), losses, strict=True))

    def _regions(self, features: dict[str, Tensor], proposals: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``(R, K+1)`` and deltas ``(R, 4 (K+1))`` as torchvision's predictor gives them."""
        heads = self.model.roi_heads
        weight = heads.box_head.fc6.weight
        maps = {level: features[level].to(weight.dtype) for level in _POOLED}
        pooled = heads.box_roi_pool(maps, [boxes.to(weight.dtype) for boxes in proposals], [])
        logits, deltas = heads.box_predictor(heads.box_head(pooled))
        return full_precision(logits), full_precision(deltas)

    def _respond(self, features: dict[str, Tensor], proposals: list[Tensor]) -> RegionResponse:
        return self._response(*self._regions(features, proposals), proposals)

    def _response(self, logits: Tensor, deltas: Tensor, proposals: list[Tensor]) -> RegionResponse:
        coder = self.model.roi_heads.box_coder
        shape = (len(logits), logits.shape[1], 4)
        boxes = coder.decode_single(deltas, torch.cat(proposals))
        return RegionResponse(logits, deltas.view(shape).transpose(1, 2), boxes.view(shape).transpose(1, 2))


def _region_pool(resolution: int, canonical_size: int) -> MultiScaleRoIAlign:
    """Pooling with the true strides; torchvision's infers them from the first batch it sees, padding left out."""
    pool = MultiScaleRoIAlign(_POOLED, output_size=resolution, sampling_ratio=2, canonical_scale=canonical_size)
    pool.scales = [1 / TWO_STAGE_STRIDES[level] for level in _POOLED]  # type: ignore[assignment]
    pool.map_levels = initLevelMapper(2, 5, canonical_scale=canonical_size)  # type: ignore[assignment]
    return pool


def _shifted(target: Target) -> Target:
    """The target without boxes that have no area, its labels counted from 1."""
    boxes = target["boxes"].float()
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    shifted = Target(boxes=boxes[kept], labels=target["labels"][kept] + 1)
    if "crowd_boxes" in target:
        shifted["crowd_boxes"] = target["crowd_boxes"].float()
    return shifted


def _outside_crowds(proposals: Tensor, target: Target) -> Tensor:
    """Proposals without those that lie mostly in a crowd region and match no object."""
    crowds = target.get("crowd_boxes")
    if crowds is None or not len(crowds):
        return proposals
    kept = ~inside_crowd(proposals, crowds)
    if len(target["boxes"]):
        kept |= (box_iou(target["boxes"], proposals) >= 0.5).any(0)
    return proposals[kept]


def _region_losses(logits: Tensor, deltas: Tensor, labels: list[Tensor], wanted: list[Tensor]) -> dict[str, Tensor]:
    if len(logits):
        values = fastrcnn_loss(logits, deltas, labels, wanted)
    else:
        values = (logits.sum(), deltas.sum())
    return dict(zip(("loss_classifier", "loss_box_reg"), values, strict=True))


def _sizes(image_sizes: Tensor) -> list[tuple[int, int]]:
    return [(height, width) for height, width in image_sizes.tolist()]
