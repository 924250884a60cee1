"""Faster and Mask R-CNN on any timm body; their weights are torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detkds.detectors.options import with_options_of
from detkds.detectors.two_stage.detector import TwoStageDetector
from detkds.detectors.two_stage.masks import MaskOptions
from detkds.detectors.two_stage.regions import SingleHead
from detkds.registry import DETECTORS


@DETECTORS.register("faster_rcnn")
@with_options_of(TwoStageDetector)
def faster_rcnn(class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> TwoStageDetector:
    """Faster R-CNN with a feature pyramid (Ren et al. 2015, arXiv 1506.01497; Lin et al. 2017, arXiv 1612.03144).

    The losses of its regions are ``loss_classifier`` and ``loss_box_reg``; options are those of ``TwoStageDetector``.
    """
    return TwoStageDetector("faster_rcnn", class_names, SingleHead, None, backbone=backbone, **options)


@DETECTORS.register("mask_rcnn")
@with_options_of(TwoStageDetector)
def mask_rcnn(
    class_names: Sequence[str],
    backbone: str = "resnet50",
    *,
    mask_resolution: int = 14,
    mask_convs: int = 4,
    mask_channels: int = 256,
    **options: Any,
) -> TwoStageDetector:
    """Mask R-CNN: Faster R-CNN that also gives each object's mask (He et al. 2017, arXiv 1703.06870).

    Its regions have ``loss_mask`` besides. Further options are those of ``TwoStageDetector``.

    Args:
        mask_resolution: cells per side that a region is pooled to; its mask has twice as many.
        mask_convs: 3 x 3 convolutions before the mask is enlarged.
        mask_channels: channels of these and of the enlarged map.
    """
    masks = MaskOptions(mask_resolution, mask_convs, mask_channels)
    return TwoStageDetector("mask_rcnn", class_names, SingleHead, masks, backbone=backbone, **options)
