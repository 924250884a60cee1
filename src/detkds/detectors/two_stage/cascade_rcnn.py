"""Cascade R-CNN and Cascade Mask R-CNN on any timm body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detkds.detectors.options import with_options_of
from detkds.detectors.two_stage.cascade import CascadeHead
from detkds.detectors.two_stage.detector import TwoStageDetector
from detkds.detectors.two_stage.masks import MaskOptions
from detkds.registry import DETECTORS


@DETECTORS.register("cascade_rcnn")
@with_options_of(TwoStageDetector)
def cascade_rcnn(class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> TwoStageDetector:
    """Cascade R-CNN: three stages that refine boxes in turn (Cai and Vasconcelos 2018, arXiv 1712.00726).

    The losses of its regions are ``loss_classifier_1`` and ``loss_box_reg_1`` to ``_3``, weighted by stage; options are
    those of ``TwoStageDetector``, the same for every stage. Its responses correspond with those of ``faster_rcnn``.
    """
    return TwoStageDetector("cascade_rcnn", class_names, CascadeHead, None, backbone=backbone, **options)


@DETECTORS.register("cascade_mask_rcnn")
@with_options_of(TwoStageDetector)
def cascade_mask_rcnn(
    class_names: Sequence[str],
    backbone: str = "resnet50",
    *,
    mask_resolution: int = 14,
    mask_convs: int = 4,
    mask_channels: int = 256,
    **options: Any,
) -> TwoStageDetector:
    """Cascade Mask R-CNN: a mask head at each of three stages (Cai and Vasconcelos 2019, arXiv 1906.09756).

    Its regions have ``loss_mask_1`` to ``_3`` besides. Options are those of ``mask_rcnn``.
    """
    masks = MaskOptions(mask_resolution, mask_convs, mask_channels)
    return TwoStageDetector("cascade_mask_rcnn", class_names, CascadeHead, masks, backbone=backbone, **options)
