"""A convolution, whether the channels differ or not."""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import skip_init

from detkds.arguments import OddCount, piece
from detkds.protocols import Adapter
from detkds.registry import ADAPTERS


@ADAPTERS.register("conv")
@piece
class Conv(Adapter):
    """A convolution of the student's map, with batch normalisation or ReLU after it where asked for.

    Args:
        size: odd, cells per side of the kernel.
        norm: ``batch`` for batch normalisation after the convolution.
        relu: whether a ReLU ends it.

    Source: FGFI (Wang et al., CVPR 2019) and FRS (Du et al., NeurIPS 2021) adapt by 3x3, DeFeat (Guo et al., CVPR 2021)
        by 3x3 and ReLU, RTMDet (Lyu et al., 2022) by 1x1 and normalisation.
    """

    size: OddCount
    norm: Literal["none", "batch"] = "none"
    relu: bool = False

    def build(self, student: int, teacher: int, generator: torch.Generator) -> nn.Module:
        """The layers from ``student`` to ``teacher`` channels."""
        layers: list[nn.Module] = [convolution(student, teacher, self.size, generator)]
        if self.norm == "batch":
            layers.append(BatchNorm(teacher))
        if self.relu:
            layers.append(nn.ReLU())
        return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that takes one image of one cell in training too.

    A single number is no batch to normalise over, so it is normalised by the running statistics, as in evaluation.
    """

    def forward(self, input: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same."""
        if self.training and input.numel() == self.num_features:
            mean, variance = self.running_mean, self.running_var
            return functional.batch_norm(input, mean, variance, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def convolution(inputs: int, outputs: int, size: int, generator: torch.Generator) -> nn.Conv2d:
    """A convolution that keeps the map's size, its initial weights drawn from the generator alone; its bias is 0."""
    # Without initial values of its own, which would be drawn from the global generator.
    layer = cast(nn.Conv2d, skip_init(nn.Conv2d, inputs, outputs, kernel_size=size, padding=size // 2))
    nn.init.kaiming_uniform_(layer.weight, a=5**0.5, generator=generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
