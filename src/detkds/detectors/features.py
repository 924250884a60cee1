"""A body alone as a teacher: feature maps, and nothing said of objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NoReturn

import torch
from pydantic import AfterValidator
from torch import Tensor, nn
from torch.nn import functional

from detkds.detectors.backbones import build_backbone
from detkds.detectors.base import Detector
from detkds.detectors.options import Count, Options, with_options_of
from detkds.errors import ConfigError, UserError
from detkds.registry import DETECTORS
from detkds.structures import Batch, Detections, DetectorInfo, DetectorOutput, FeatureSpec, Layout


def _distinct(strides: tuple[int, ...]) -> tuple[int, ...]:
    if not strides or len(set(strides)) < len(strides):
        raise ConfigError(f"strides: expected different ones, at least one, got {list(strides)}")
    return strides


class FeaturesOptions(Options):
    """Options of a body alone."""

    backbone: str
    """``narrow<W>`` or a timm model."""
    strides: Annotated[tuple[Count, ...], AfterValidator(_distinct)] = (16,)
    """Pixels per cell of the maps."""
    backbone_weights: str | None = None
    """None, ``pretrained`` or a file or URL."""
    backbone_options: Mapping[str, Any] | None = None
    """Further arguments of the timm model."""


@DETECTORS.register("features")
class Features(Detector):
    """A body of timm as it was pretrained, such as a vision transformer of DINOv2 or SigLIP: a teacher of features.

    It offers no responses, losses or predictions, so that only knowledge of feature maps can be distilled from it. Maps
    are those of the body at each of the strides, the deepest of several with the same; a vision transformer has one, at
    the side of its patches. Images are padded to whole cells of the largest stride. The body stands in evaluation mode,
    whatever mode is asked for, and is not trained.

    Options are those of :class:`FeaturesOptions`.
    """

    network: nn.Module

    @with_options_of(FeaturesOptions)
    def __init__(self, class_names: Sequence[str], backbone: str, **options: Any) -> None:
        given = FeaturesOptions.checked("features", class_names=class_names, backbone=backbone, **options)
        strides = given.strides
        body = build_backbone(given.backbone, strides, weights=given.backbone_weights, options=given.backbone_options)
        super().__init__(given.class_names, given.mean or body.mean, given.std or body.std)
        self.backbone = backbone
        self.network = body.network.requires_grad_(False).eval()
        self.channels_last = body.channels_last
        self.positions = {f"s{stride}": body.positions[stride] for stride in strides}
        specs = {f"s{stride}": FeatureSpec(body.channels[stride], stride) for stride in strides}
        self.info = DetectorInfo(specs, Layout(class_names=given.class_names))

    def train(self, mode: bool = True) -> Features:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, batch: Batch) -> DetectorOutput:
        """The maps ``(N, C, ceil(H / stride), ceil(W / stride))``, without gradient; see :meth:`Detector.forward`."""
        images = self.normalize(batch)
        height, width = images.shape[-2:]
        cell = max(round(spec.stride) for spec in self.info.features.values())
        maps = self.network(functional.pad(images, (0, -width % cell, 0, -height % cell)))
        features: dict[str, Tensor] = {}
        for level, spec in self.info.features.items():
            feature = maps[self.positions[level]]
            feature = feature.movedim(-1, 1) if self.channels_last else feature
            rows, columns = (math.ceil(side / spec.stride) for side in (height, width))
            features[level] = feature[..., :rows, :columns].contiguous()
        return DetectorOutput(features, batch.image_sizes, self.info.layout)

    def predict(self, batch: Batch) -> list[Detections]:
        """Refused.

        Raises:
            UserError: always.
        """
        self._refuse("predict")

    def restore(self, output: DetectorOutput) -> DetectorOutput:
        """As it was stored; see :meth:`Detector.restore`."""
        return output

    def home_state_dict(self) -> dict[str, Tensor]:
        """The body's weights under timm's names for its maps."""
        return self.network.state_dict()

    @staticmethod
    def is_backbone(name: str) -> bool:
        """All of it is body."""
        return True

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(
            f"features({self.backbone}): a body alone cannot {what}; it is a teacher of feature maps for "
            f"knowledge such as global, not a detector to train, measure or export"
        )
