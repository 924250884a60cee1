"""The head of RepPoints: points of each cell, refined and classified by a convolution that looks at them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d
from torchvision.ops.misc import Conv2dNormActivation

from detkds.detectors.one_stage.dense import head_norm
from detkds.detectors.one_stage.point_set import Conversion, PointsToBoxes, scale_gradient
from detkds.precision import full_precision

NUM_POINTS = 9
"""Points of a set: one for each tap of a 3 x 3 kernel."""

_POINT_GRADIENT = 0.1
"""The factor of the gradient that the later stage sends to the initial points."""

_PRIOR = 0.01
"""The probability of each class before training, as in focal loss's section 4.1."""


class RepPointsHead(nn.Module):
    """Two stages of points, and classes (Yang et al. 2019, arXiv 1904.11490, section 4 and Figure 3).

    Two towers of convolutions serve points and classes. The initial points are offsets from the cell; the taps of two
    deformable convolutions, one in each tower, are put there to refine the points and to classify. Offsets are in
    cells, which is strides of the level.

    Differs: the three hidden convolutions that no norm follows start at the scale of He et al. 2015 instead of a
    deviation of 0.01, at which a few large steps of Adam silence their ReLUs for good.

    Args:
        channels: of every level and of the towers.
        classes: foreground classes.
        convs: 3 x 3 convolutions, each with group normalization, in each tower.
        conversion: how points become a box.
    """

    taps: Tensor

    def __init__(self, channels: int, classes: int, convs: int, conversion: Conversion) -> None:
        super().__init__()
        self.class_tower = _tower(channels, convs)
        self.point_tower = _tower(channels, convs)
        self.initial_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.initial_out = nn.Conv2d(channels, 2 * NUM_POINTS, 1)
        self.refined_conv = DeformConv2d(channels, channels, 3, padding=1, bias=False)
        self.refined_out = nn.Conv2d(channels, 2 * NUM_POINTS, 1)
        self.class_conv = DeformConv2d(channels, channels, 3, padding=1, bias=False)
        self.class_out = nn.Conv2d(channels, classes, 1)
        self.to_boxes = PointsToBoxes(conversion)
        self.register_buffer("taps", kernel_taps(), persistent=False)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, DeformConv2d)):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for hidden in (self.initial_conv, self.refined_conv, self.class_conv):
            nn.init.kaiming_normal_(hidden.weight, nonlinearity="relu")
        assert self.class_out.bias is not None
        nn.init.constant_(self.class_out.bias, -math.log((1 - _PRIOR) / _PRIOR))

    def forward(self, levels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Rows of all levels ``(N, C, H, W)`` in turn.

        Returns:
            ``cls_logits (N, M, K)``, and the boxes of both stages as distances from the cell to the left, top, right
            and bottom in strides: ``initial_regression (N, M, 4)`` and, refined, ``bbox_regression (N, M, 4)``. A
            distance is negative where the box leaves out its cell.
        """
        outputs = [self._level(level) for level in levels]
        logits, initial, refined = (
            torch.cat([full_precision(rows).flatten(2).transpose(-1, -2) for rows in group], dim=1)
            for group in zip(*outputs, strict=True)
        )
        return {
            "cls_logits": logits,
            "initial_regression": self._sides(initial),
            "bbox_regression": self._sides(refined),
        }

    def _level(self, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``(N, K, H, W)`` and both stages' points ``(N, 2 P, H, W)``, in the order of :func:`look_at`."""
        classes, points = self.class_tower(level), self.point_tower(level)
        initial = full_precision(self.initial_out(F.relu(self.initial_conv(points))))
        offsets = scale_gradient(initial, _POINT_GRADIENT) - self.taps
        logits = self.class_out(F.relu(look_at(classes, offsets, self.class_conv)))
        moved = self.refined_out(F.relu(look_at(points, offsets, self.refined_conv)))
        return logits, initial, initial.detach() + moved

    def _sides(self, points: Tensor) -> Tensor:
        low, high = self.to_boxes(points.unflatten(2, (NUM_POINTS, 2)).flip(-1)).split(2, dim=-1)
        return torch.cat((-low, high), dim=-1)


def kernel_taps() -> Tensor:
    """Where the taps of a 3 x 3 kernel lie around its center: ``(1, 18, 1, 1)``, y before x for each tap in turn."""
    side = torch.arange(-1.0, 2.0)
    return torch.cartesian_prod(side, side).view(1, 2 * NUM_POINTS, 1, 1)


def look_at(features: Tensor, offsets: Tensor, convolution: DeformConv2d) -> Tensor:
    """Convolve features ``(N, C, H, W)`` with each tap moved by ``offsets (N, 18, H, W)`` cells, y before x.

    Positions need full precision, so that the whole operation is in float32 under autocast too.
    """
    with torch.autocast(features.device.type, enabled=False):
        return convolution(full_precision(features), offsets)


def _tower(channels: int, convs: int) -> nn.Sequential:
    layers = [Conv2dNormActivation(channels, channels, norm_layer=head_norm) for _ in range(convs)]
    return nn.Sequential(*layers)
