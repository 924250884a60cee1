"""Masked generation: the teacher's map from what a random mask leaves of the student's."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from detkds.adapters.auto import Auto
from detkds.adapters.conv import convolution
from detkds.arguments import piece
from detkds.protocols import Adapter
from detkds.registry import ADAPTERS
from detkds.structures import Pair
from detkds.transforms.mask import RandomMask


@ADAPTERS.register("generate")
@piece
class Generate(Adapter):
    """Set a random ``ratio`` of the student's positions to zero, then two 3x3 convolutions with a ReLU between.

    Where the channels differ, a 1x1 convolution comes first.

    Source: MGD (Yang et al., ECCV 2022), equations 2-4; ratios 0.65 (one-stage) and 0.45 (two-stage) of its code.
    """

    draws: ClassVar[bool] = True

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.65

    def build(self, student: int, teacher: int, generator: torch.Generator) -> nn.Module:
        """The generator from ``student`` to ``teacher`` channels."""
        return Generator(Auto().build(student, teacher, generator), teacher, RandomMask(self.ratio), generator)


class Generator(nn.Module):
    """Alignment, mask and generation; every pass draws a mask from the random numbers that it is given."""

    def __init__(self, align: nn.Module | None, channels: int, mask: RandomMask, generator: torch.Generator) -> None:
        super().__init__()
        self.align = align if align is not None else nn.Identity()
        self.mask = mask
        self.generate = nn.Sequential(
            convolution(channels, channels, 3, generator), nn.ReLU(), convolution(channels, channels, 3, generator)
        )

    def forward(self, feature: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """``(N, C, H, W)`` to ``(N, C', H, W)``."""
        feature = self.align(feature)
        return self.generate(self.mask(Pair(feature, feature, generator=generator)).student)
