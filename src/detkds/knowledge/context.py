"""Feature maps with the context of the whole image written into every position."""

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


@KNOWLEDGE.register("context")
@piece
class Context(Knowledge):
    """Both sides after a context block of their own, one pair ``(N, C, H, W)`` per level.

    R(F) = F + W2 ReLU(LN(W1 sum_j softmax_j(Wk F)_j F_j)), with j over the positions. The blocks of both sides and of
    all levels are learned apart. They begin as the identity, W2 being 0.

    Args:
        ratio: channels between W1 and W2, as a fraction of the map's.

    Source: FGD (Yang et al., CVPR 2022), equation 10, with the block of GCNet (Cao et al., ICCVW 2019).
    """

    yields: ClassVar[Kind] = "feature"

    ratio: Positive = 0.5

    def learned(self, channels: Mapping[str, int], generator: torch.Generator) -> nn.Module:
        """The blocks of both sides, for maps of these channels."""
        return PerLevel(_BothSides(count, self.ratio, generator) for count in channels.values())


class _BothSides(nn.Module):
    def __init__(self, channels: int, ratio: float, generator: torch.Generator) -> None:
        super().__init__()
        self.student, self.teacher = (ContextBlock(channels, ratio, generator) for _ in range(2))

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Pair]:
        return (Pair(self.student(student), self.teacher(teacher), teacher_learns=True),)


class ContextBlock(nn.Module):
    """R above: ``(N, C, H, W)`` to the same."""

    def __init__(self, channels: int, ratio: float, generator: torch.Generator) -> None:
        super().__init__()
        hidden = max(1, int(channels * ratio))
        self.key = convolution(channels, 1, 1, generator)
        self.narrow = convolution(channels, hidden, 1, generator)
        self.norm = nn.LayerNorm([hidden, 1, 1])
        self.widen = convolution(hidden, channels, 1, generator)
        nn.init.zeros_(self.widen.weight)

    def forward(self, feature: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same."""
        share = self.key(feature).flatten(2).softmax(2)  # (N, 1, H W)
        context = (feature.flatten(2) @ share.transpose(1, 2))[..., None]  # (N, C, 1, 1)
        return feature + self.widen(torch.relu(self.norm(self.narrow(context))))
