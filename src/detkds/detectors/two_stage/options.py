"""Options of two-stage detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import field_validator
from torch import nn

from detkds.detectors.options import BodyOptions, Count, CountOrNone, Positives

BACKGROUND_NAME = "__background__"
"""How torchvision names column 0; a list of class names may begin with it."""


class TwoStageOptions(BodyOptions):
    """Options of every two-stage detector; its body gives maps at strides 4, 8, 16 and 32."""

    norm: Literal["none", "batch"] = "none"
    """Normalization in the pyramid and after the convolutions over regions."""
    rpn_convs: Count = 1
    """3 x 3 convolutions of the proposal network."""
    box_convs: CountOrNone = 0
    """3 x 3 convolutions over a region, each of ``neck_channels``; without any, two fully connected layers follow the
    pooling, otherwise one."""
    representation: Count = 1024
    """Width of the fully connected layers over a region."""
    roi_resolution: Count = 7
    """Cells per side that a region is pooled to; most of a pass on a CPU goes there."""
    roi_canonical_size: Count = 224
    """Square root of the area in pixels of regions that are pooled from p4."""
    roi_samples: Count = 512
    """Proposals per image that the losses are taken over."""
    anchor_scales: Positives = (8.0,)
    """Sides of the anchors in strides, cut to whole pixels."""
    anchor_ratios: Positives = (0.5, 1.0, 2.0)
    """Heights over widths."""
    rpn_samples: Count = 256
    """Anchors per image that the losses are taken over."""
    rpn_pre_nms: Count = 2000
    """Proposals of each level before suppression, while training."""
    rpn_post_nms: Count = 2000
    """Proposals per image after suppression, while training."""
    rpn_pre_nms_predict: Count = 1000
    """Proposals of each level before suppression, for predictions."""
    rpn_post_nms_predict: Count = 1000
    """Proposals per image after suppression, for predictions."""

    @property
    def norm_layer(self) -> Callable[..., nn.Module] | None:
        """The normalization of :attr:`norm`."""
        return nn.BatchNorm2d if self.norm == "batch" else None

    @field_validator("class_names", mode="before")
    @classmethod
    def _without_background(cls, names: Any) -> Any:
        return names[1:] if isinstance(names, (list, tuple)) and names and names[0] == BACKGROUND_NAME else names


class MaskOptions(TwoStageOptions):
    """Options of those that also predict masks."""

    mask_resolution: Count = 14
    """Cells per side that a region is pooled to; its mask has twice as many."""
    mask_convs: CountOrNone = 4
    """3 x 3 convolutions before the mask is enlarged."""
    mask_channels: Count = 256
    """Channels of these and of the enlarged map."""
