"""A detector that is given images of another size than the others see."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from detkds.detectors.base import Detector
from detkds.structures import (
    Batch,
    Detections,
    DetectorInfo,
    DetectorOutput,
    FeatureSpec,
    RegionResponse,
    Regions,
    Target,
)


class Rescaled(Detector):
    """Enlarges or reduces the images for a detector, and brings what it says back to the batch's pixels.

    Its cells cover ``stride / scale`` pixels of the batch, which is what its levels are matched by: with scale 2 the
    level of stride 16 answers to a student's of stride 8.

    Args:
        detector: what is given the images.
        scale: side of its images over that of the batch's; bilinear, with antialiasing.
    """

    def __init__(self, detector: Detector, scale: float) -> None:
        super().__init__(detector.class_names)
        self.detector = detector
        self.scale = float(scale)
        info = detector.info
        key = f"{info.layout.anchor_key} at {self.scale:g}" if info.layout.anchor_key else ""
        self.info = DetectorInfo(
            {level: FeatureSpec(spec.channels, spec.stride / self.scale) for level, spec in info.features.items()},
            replace(info.layout, anchor_key=key),
            info.masks,
            info.regions,
        )

    @property
    def core(self) -> Detector:
        """The detector itself."""
        return self.detector.core

    @property
    def responses(self) -> bool:
        """Whether a pass in evaluation mode runs the head; absent where the detector does not know this."""
        return self.detector.responses  # type: ignore[attr-defined]

    @responses.setter
    def responses(self, wanted: bool) -> None:
        self.detector.responses = wanted  # type: ignore[attr-defined]

    def forward(self, batch: Batch) -> DetectorOutput:
        """One pass; see :meth:`Detector.forward`."""
        return self._returned(self.detector(self._resized(batch)), batch.image_sizes)

    def predict(self, batch: Batch) -> list[Detections]:
        """Detections of each image; see :meth:`Detector.predict`."""
        shape = batch.images.shape[-2:]
        return [
            replace(
                detections,
                boxes=detections.boxes / self.scale,
                masks=None if detections.masks is None else _fit(detections.masks, shape),
            )
            for detections in self.detector.predict(self._resized(batch))
        ]

    def restore(self, output: DetectorOutput) -> DetectorOutput | None:
        """See :meth:`Detector.restore`."""
        inner = replace(output, image_sizes=self._sizes(output.image_sizes), layout=self.detector.info.layout)
        restored = self.detector.restore(inner)
        return None if restored is None else self._returned(restored, output.image_sizes)

    def home_state_dict(self) -> dict[str, Tensor]:
        """The detector's own."""
        return self.detector.home_state_dict()

    @staticmethod
    def is_backbone(name: str) -> bool:
        """Names are those of the detector inside; ask it."""
        return False

    def _resized(self, batch: Batch) -> Batch:
        height, width = (max(1, math.ceil(side * self.scale)) for side in batch.images.shape[-2:])
        # Enough padding that not a row or column is lost where the sides do not divide.
        margin = math.ceil(1 / self.scale)
        images = F.interpolate(
            F.pad(batch.images, (0, margin, 0, margin), mode="replicate"),
            scale_factor=self.scale,
            mode="bilinear",
            antialias=self.scale < 1,
            recompute_scale_factor=False,
        )[..., :height, :width]
        targets = None if batch.targets is None else [self._target(target) for target in batch.targets]
        return replace(batch, images=images, image_sizes=self._sizes(batch.image_sizes), targets=targets, scales=None)

    def _sizes(self, sizes: Tensor) -> Tensor:
        return (sizes * self.scale).ceil().long()

    def _target(self, target: Target) -> Target:
        moved: dict[str, Any] = dict(target)
        for name in ("boxes", "crowd_boxes"):
            if name in moved:
                moved[name] = moved[name].float() * self.scale
        if "masks" in moved:
            moved["masks"] = _fit(moved["masks"], [math.ceil(side * self.scale) for side in moved["masks"].shape[1:]])
        return Target(**moved)

    def _returned(self, output: DetectorOutput, sizes: Tensor) -> DetectorOutput:
        respond = output.respond_at
        return replace(
            output,
            image_sizes=sizes,
            layout=self.info.layout,
            boxes={level: boxes / self.scale for level, boxes in output.boxes.items()},
            proposals=None if output.proposals is None else [boxes / self.scale for boxes in output.proposals],
            respond_at=None if respond is None else self._respond(respond),
            region=None if output.region is None else self._region(output.region),
            branches=None,
        )

    def _respond(self, respond: Callable[[list[Tensor]], RegionResponse]) -> Callable[[list[Tensor]], RegionResponse]:
        def respond_at(proposals: list[Tensor]) -> RegionResponse:
            response = respond([boxes * self.scale for boxes in proposals])
            return replace(response, boxes=response.boxes / self.scale)

        return respond_at

    def _region(self, regions: Regions) -> Regions:
        def region(name: str, boxes: Sequence[Tensor] | None = None) -> Mapping[str, Tensor]:
            return regions(name, None if boxes is None else [image_boxes * self.scale for image_boxes in boxes])

        return region


def _fit(masks: Tensor, shape: Any) -> Tensor:
    """``(R, H, W)`` bool to another size, each cell the nearest."""
    if not len(masks):
        return masks.new_zeros(0, *shape)
    return F.interpolate(masks[None].float(), tuple(shape), mode="nearest")[0] > 0.5
