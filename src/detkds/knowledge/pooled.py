"""What is left of feature maps when positions or channels are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from detkds.adapters.conv import convolution
from detkds.arguments import piece
from detkds.knowledge.per_level import PerLevel
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import Kind, Pair


@KNOWLEDGE.register("pooled")
@piece
class Pooled(Knowledge):
    """The means of both maps, the student's after a learned linear layer or convolution.

    Args:
        over: ``positions``: the mean over them, ``(N, C, 1, 1)``, the student's after a linear layer over its channels;
            ``channels``: the mean over them, ``(N, 1, H, W)``, the student's after a 3x3 convolution.

    Source: FKD (Zhang and Ma, ICLR 2021), equation 6, with the layers of the authors' code.
    """

    yields: ClassVar[Kind] = "feature"

    over: Literal["positions", "channels"] = "positions"

    def learned(self, channels: Mapping[str, int], generator: torch.Generator) -> nn.Module:
        """The layers, for maps of these channels."""
        if self.over == "positions":
            return PerLevel(_Pooled([2, 3], convolution(count, count, 1, generator)) for count in channels.values())
        return PerLevel(_Pooled([1], convolution(1, 1, 3, generator)) for _ in channels)


class _Pooled(nn.Module):
    def __init__(self, over: list[int], adapt: nn.Module) -> None:
        super().__init__()
        self.over = over
        self.adapt = adapt

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Pair]:
        ours, theirs = (side.mean(self.over, keepdim=True) for side in (student, teacher))
        return (Pair(self.adapt(ours), theirs),)
