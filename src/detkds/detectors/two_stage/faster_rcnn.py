"""Faster and Mask R-CNN on any timm body; their weights are torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detkds.detectors.options import with_options_of
from detkds.detectors.two_stage.detector import TwoStageDetector
from detkds.detectors.two_stage.options import MaskOptions, TwoStageOptions
from detkds.detectors.two_stage.regions import SingleHead
from detkds.registry import DETECTORS


@DETECTORS.register("faster_rcnn")
@with_options_of(TwoStageOptions)
def faster_rcnn(class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> TwoStageDetector:
    """Faster R-CNN with a feature pyramid (Ren et al. 2015, arXiv 1506.01497; Lin et al. 2017, arXiv 1612.03144).

    The losses of its regions are ``loss_classifier`` and ``loss_box_reg``; options are those of
    :class:`TwoStageOptions`.
    """
    given = TwoStageOptions.checked("faster_rcnn", class_names=class_names, backbone=backbone, **options)
    return TwoStageDetector("faster_rcnn", given, SingleHead)


@DETECTORS.register("mask_rcnn")
@with_options_of(MaskOptions)
def mask_rcnn(class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> TwoStageDetector:
    """Mask R-CNN: Faster R-CNN that also gives each object's mask (He et al. 2017, arXiv 1703.06870).

    Its regions have ``loss_mask`` besides; options are those of :class:`MaskOptions`.
    """
    given = MaskOptions.checked("mask_rcnn", class_names=class_names, backbone=backbone, **options)
    return TwoStageDetector("mask_rcnn", given, SingleHead)
