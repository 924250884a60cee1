"""Foreground and background of the feature maps, imitated apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from detkds.knowledge.geometry import boxes_of, foreground_weight, valid_cells
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, DetectorOutput, Kind, Pair, Target


@KNOWLEDGE.register("fgbg")
@dataclass(frozen=True)
class ForegroundBackground:
    """Two pairs ``(N, C, H, W)`` per level: cells inside ground-truth boxes, and the rest of the valid area.

    Each side is multiplied by the binary mask. The loss over the foreground weights a cell by the largest 1/area of
    the boxes over it, so that small objects count as much as large ones; over the background all cells weigh alike.

    Args:
        background: factor of the background pair.

    Source: DetKDS section 3.1; area weights of FGD (Yang et al., 2022, eq. 3), reduced as a weighted mean.
    Differs: the released code divides boxes by the un-padded image size, which shifts masks on padded maps; here boxes
        are divided by the stride.
    """

    background: float = 0.5

    name: ClassVar[str]
    yields: ClassVar[Kind] = "feature"

    def __call__(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Target] | None,
        levels: Mapping[str, float],
    ) -> Iterator[Pair]:
        boxes = boxes_of(targets, "fgbg")
        for level, stride in levels.items():
            ours, theirs = student.features[level], teacher.features[level]
            valid = valid_cells(student.image_sizes, ours.shape[-2:], stride).to(ours)
            foreground = foreground_weight(boxes, ours.shape[-2:], stride).to(ours) * valid
            background = valid * (foreground == 0)
            for weight, factor in ((foreground, 1.0), (background, self.background)):
                mask = (weight > 0).to(ours.dtype)
                yield Pair(ours * mask, theirs * mask, weight=weight, factor=factor)

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        return None
