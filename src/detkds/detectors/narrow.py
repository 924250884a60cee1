"""A narrow ResNet for a CPU. The file needs torch and timm alone: exported detectors take it with them."""

from __future__ import annotations

from collections import OrderedDict

from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn


class NarrowNet(nn.Module):
    """A ResNet of one basic block per stage and widths ``(W, 2W, 4W, 8W)`` at strides 4, 8, 16 and 32.

    The stem is two 3 x 3 convolutions of stride 2, which costs less at small sizes than the 7 x 7 one of
    ResNet (He et al. 2016). Batch normalization is trained.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        half = max(width // 2, 4)
        self.stem = nn.Sequential(_conv_norm_act(3, half), _conv_norm_act(half, width))
        self.widths = tuple(width * 2**stage for stage in range(4))
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        inputs = width
        for number, outputs in enumerate(self.widths, start=1):
            stride = 1 if number == 1 else 2
            shortcut = None if inputs == outputs else downsample_conv(inputs, outputs, 1, stride)
            stages[f"layer{number}"] = BasicBlock(inputs, outputs, stride, shortcut)
            inputs = outputs
        self.stages = nn.Sequential(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of strides 4, 8, 16 and 32."""
        maps = []
        features = self.stem(images)
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps


def _conv_norm_act(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )
