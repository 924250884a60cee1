"""Cascade R-CNN and Cascade Mask R-CNN on any timm body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detkds.detectors.options import with_options_of
from detkds.detectors.two_stage.cascade import CascadeHead
from detkds.detectors.two_stage.detector import TwoStageDetector
from detkds.detectors.two_stage.options import MaskOptions, TwoStageOptions
from detkds.registry import DETECTORS


@DETECTORS.register("cascade_rcnn")
@with_options_of(TwoStageOptions)
def cascade_rcnn(class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> TwoStageDetector:
    """Cascade R-CNN: three stages that refine boxes in turn (Cai and Vasconcelos 2018, arXiv 1712.00726).

    The losses of its regions are ``loss_classifier_1`` and ``loss_box_reg_1`` to ``_3``, weighted by stage; options are
    those of :class:`TwoStageOptions`, the same for every stage. Its responses correspond with those of ``faster_rcnn``.
    """
    given = TwoStageOptions.checked("cascade_rcnn", class_names=class_names, backbone=backbone, **options)
    return TwoStageDetector("cascade_rcnn", given, CascadeHead)


@DETECTORS.register("cascade_mask_rcnn")
@with_options_of(MaskOptions)
def cascade_mask_rcnn(class_names: Sequence[str], backbone: str = "resnet50", **options: Any) -> TwoStageDetector:
    """Cascade Mask R-CNN: a mask head at each of three stages (Cai and Vasconcelos 2019, arXiv 1906.09756).

    Its regions have ``loss_mask_1`` to ``_3`` besides. Options are those of :class:`MaskOptions`.
    """
    given = MaskOptions.checked("cascade_mask_rcnn", class_names=class_names, backbone=backbone, **options)
    return TwoStageDetector("cascade_mask_rcnn", given, CascadeHead)
