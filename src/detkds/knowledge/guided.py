"""Feature maps whose positions count by how strongly student and teacher respond there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from detkds.adapters.conv import convolution
from detkds.arguments import Positive, piece
from detkds.knowledge.per_level import PerLevel
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import Kind, Pair


@KNOWLEDGE.register("guided")
@piece
class Guided(Knowledge):
    """The student's map after a 1x1 convolution and the teacher's, weighed by the attention of both.

    With A(F) = H W softmax over the positions of (mean_c |F| / tau), a position weighs (A(S) + A(T)) / 2, without
    gradient; A(S) is that of the map before the convolution. Pairs ``(N, C, H, W)``, one per level.

    Args:
        tau: temperature of the softmax.
        channels: whether elements weigh by the attention of their channel too, which is the same with positions and
            channels exchanged.

    Source: FKD (Zhang and Ma, ICLR 2021), equations 3-5. The paper has ``channels``, the authors' code has not.
    """

    yields: ClassVar[Kind] = "feature"

    tau: Positive = 0.5
    channels: bool = False

    def learned(self, channels: Mapping[str, int], generator: torch.Generator) -> nn.Module:
        """The convolutions, for maps of these channels."""
        return PerLevel(_Guided(self, convolution(count, count, 1, generator)) for count in channels.values())


class _Guided(nn.Module):
    def __init__(self, options: Guided, adapt: nn.Module) -> None:
        super().__init__()
        self.options = options
        self.adapt = adapt

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Pair]:
        sides = student.detach(), teacher.detach()
        weight = self._mean_attention(sides, [1])
        if self.options.channels:
            weight = weight * self._mean_attention(sides, [2, 3])
        return (Pair(self.adapt(student), teacher, weight=weight),)

    def _mean_attention(self, sides: tuple[Tensor, Tensor], over: list[int]) -> Tensor:
        strengths = [side.abs().mean(over, keepdim=True) for side in sides]
        shares = [(strength.flatten(1) / self.options.tau).softmax(1) * strength[0].numel() for strength in strengths]
        return ((shares[0] + shares[1]) / 2).view_as(strengths[0])
