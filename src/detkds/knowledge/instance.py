"""Crops of the feature maps at the ground-truth boxes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from detkds.knowledge.crops import Crops
from detkds.knowledge.geometry import boxes_of
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, DetectorOutput, Kind, Pair, Target

_CANONICAL_SIZE, _CANONICAL_LEVEL = 224.0, 4  # FPN (Lin et al., 2017), eq. 1


@KNOWLEDGE.register("instance")
@dataclass(frozen=True)
class Instance:
    """Features inside each object, cropped before any transform: ``(R, C, size, size)`` per level, R objects.

    Args:
        size: cells per side of a crop.
        assign: ``all`` crops every object on every level; ``fpn`` on the one level that fits its size.

    Degenerate: a batch without objects gives empty pairs, whose loss is 0.
    Source: DetKDS section 3.1.
    Differs: the released code transforms the map first, then crops 14 x 14 cells at a scale that ignores the transform;
        7 x 7, as region heads take, costs a quarter.
    """

    size: int = 7
    assign: Literal["all", "fpn"] = "all"

    name: ClassVar[str]
    yields: ClassVar[Kind] = "feature"

    def __post_init__(self) -> None:
        if self.size < 1 or self.assign not in ("all", "fpn"):
            raise ValueError(f"expected size >= 1 and assign 'all' or 'fpn', got {self.size!r} and {self.assign!r}")

    def __call__(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Target] | None,
        levels: Mapping[str, float],
    ) -> Iterator[Pair]:
        boxes = boxes_of(targets, "instance")
        strides = sorted(levels.values())
        for level, stride in levels.items():
            ours, theirs = student.features[level], teacher.features[level]
            chosen = [b if self.assign == "all" else b[_fits(b, stride, strides)] for b in boxes]
            crop = Crops(chosen, ours.shape[-2:], stride, self.size, like=ours)
            yield Pair(crop(ours), crop(theirs))

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        return None


def _fits(boxes: torch.Tensor, stride: float, strides: Sequence[float]) -> torch.Tensor:
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp_min(1e-6).sqrt()
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(size / _CANONICAL_SIZE + 1e-8))
    finest, own, coarsest = (round(math.log2(one)) for one in (strides[0], stride, strides[-1]))
    return level.clamp(finest, coarsest) == own
