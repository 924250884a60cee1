"""Random masking of positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from detkds.arguments import piece
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair


@TRANSFORMS.register("mask")
@piece
class RandomMask(Transform):
    """Set a random ``ratio`` of the positions to zero in all channels, at the same places on both sides.

    F -> F * 1[R >= ratio], R ~ U(0, 1) per image and position; survivors are not rescaled. The draw comes from
    ``pair.generator`` on its own device, so that every device sees the same mask.

    Shapes:  (N, C, H, W) -> (N, C, H, W)
    Source:  DetKDS, equation 10, with the ratio of the authors' code.
    Differs: the authors' code draws anew for each side (``shared=false``), so that equal sides are not equal after it.
    """

    stage: ClassVar[Stage] = "attention"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.65
    shared: bool = True

    @property
    def neutral(self) -> bool:
        return self.ratio == 0

    def __call__(self, pair: Pair) -> Pair:
        student_keep = self._draw(pair.student, pair.generator)
        teacher_keep = student_keep if self.shared else self._draw(pair.teacher, pair.generator)
        return replace(pair, student=pair.student * student_keep, teacher=pair.teacher * teacher_keep)

    def _draw(self, feature: Tensor, generator: torch.Generator | None) -> Tensor:
        images, _, height, width = feature.shape
        device = feature.device if generator is None else generator.device
        drawn = torch.rand(images, 1, height, width, generator=generator, device=device)
        return (drawn >= self.ratio).to(feature)
