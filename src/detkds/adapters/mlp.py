"""Two 1x1 convolutions: the same small network at every position."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from detkds.adapters.conv import convolution
from detkds.arguments import piece
from detkds.protocols import Adapter
from detkds.registry import ADAPTERS


@ADAPTERS.register("mlp")
@piece
class MLP(Adapter):
    """Two 1x1 convolutions with an activation between them, the first one to the teacher's channels already.

    Args:
        activation: ``relu`` or ``gelu``.
        norm: whether each position is normalised over its channels before the activation.

    Source: the projector of Ultralytics' distillation (2026); AM-RADIO (Ranzinger et al., CVPR 2024), whose MLP is
        ``mlp(activation=gelu, norm=true)``.
    """

    activation: Literal["relu", "gelu"] = "relu"
    norm: bool = False

    def build(self, student: int, teacher: int, generator: torch.Generator) -> nn.Module:
        """The layers from ``student`` to ``teacher`` channels."""
        layers: list[nn.Module] = [convolution(student, teacher, 1, generator)]
        if self.norm:
            layers.append(ChannelNorm(teacher))
        layers.append(nn.ReLU() if self.activation == "relu" else nn.GELU())
        return nn.Sequential(*layers, convolution(teacher, teacher, 1, generator))


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of every position over its channels."""

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same."""
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)
