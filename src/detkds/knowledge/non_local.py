"""Feature maps with the relations between all their positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from detkds.adapters.conv import convolution
from detkds.arguments import piece
from detkds.knowledge.per_level import PerLevel
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import Kind, Pair

_POOLS, _REDUCTIONS = (8, 4, 2, 2), (4, 4, 2, 2)  # of the first four levels; further ones are as the last


@KNOWLEDGE.register("non_local")
@piece
class NonLocal(Knowledge):
    """Both sides after a non-local block of their own, the student's then after a 1x1 convolution; one pair per level.

    r(F)_i = F_i + W_o 1/M sum_j (theta(F_i) . phi(F)_j) g(F)_j, where j runs over the M cells of phi and g after
    max-pooling, by 8, 4, 2, 2 on the four finest levels and 2 on others, and theta, phi and g have 1/4, 1/4, 1/2, 1/2
    of the channels. The blocks of both sides and of all levels are learned apart. They begin as the identity.

    Source: FKD (Zhang and Ma, ICLR 2021), equation 7 and, for the sizes, the authors' code; the dot product of
        Non-local Networks (Wang et al., CVPR 2018), equation 4.
    Differs: the code normalises what W_o gives over the batch, by a factor that begins at 0. Here W_o itself does, so
        that a level of one cell can be trained on.
    """

    yields: ClassVar[Kind] = "feature"

    def learned(self, channels: Mapping[str, int], generator: torch.Generator) -> nn.Module:
        """The blocks and convolutions, for maps of these channels."""
        sizes = [(_POOLS[min(index, 3)], _REDUCTIONS[min(index, 3)]) for index in range(len(channels))]
        return PerLevel(
            _BothSides(count, pool, max(1, count // reduction), generator)
            for count, (pool, reduction) in zip(channels.values(), sizes, strict=True)
        )


class _BothSides(nn.Module):
    def __init__(self, channels: int, pool: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.student, self.teacher = (NonLocalBlock(channels, pool, hidden, generator) for _ in range(2))
        self.adapt = convolution(channels, channels, 1, generator)

    def forward(self, student: Tensor, teacher: Tensor) -> tuple[Pair]:
        return (Pair(self.adapt(self.student(student)), self.teacher(teacher), teacher_learns=True),)


class NonLocalBlock(nn.Module):
    """r above: ``(N, C, H, W)`` to the same."""

    def __init__(self, channels: int, pool: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.pool = pool
        self.theta, self.phi, self.g = (convolution(channels, hidden, 1, generator) for _ in range(3))
        self.out = convolution(hidden, channels, 1, generator)
        nn.init.zeros_(self.out.weight)

    def forward(self, feature: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same."""
        phi, g = (
            max_pool2d(layer(feature), self.pool, ceil_mode=True).flatten(2)  # (N, I, M)
            for layer in (self.phi, self.g)
        )
        # (theta . phi) g = theta . (phi g): the relations of all positions never stand in memory.
        summed = g @ phi.transpose(1, 2) / phi.shape[2]  # (N, I, I)
        theta = self.theta(feature)
        return feature + self.out((summed @ theta.flatten(2)).view_as(theta))
