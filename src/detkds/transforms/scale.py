"""Coarser maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from detkds.arguments import Count, piece
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair


@TRANSFORMS.register("scale")
@piece
class Scale(Transform):
    """Pool windows of n x n cells; windows cut by the border pool the cells they have. ``scale(1)`` is the identity.

    The pair's weight is pooled by the maximum of the same windows.

    Shapes:  (N, C, H, W) -> (N, C, ceil(H / n), ceil(W / n))
    Source:  DetKDS, equation 5 and appendix D.
    Differs: the authors' code pads with zeros, which replaces negative cells at the border.
    """

    stage: ClassVar[Stage] = "scale"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    n: Count
    pool: Literal["max", "avg"] = "max"

    @property
    def neutral(self) -> bool:
        return self.n == 1

    def __call__(self, pair: Pair) -> Pair:
        if self.n == 1:
            return pair
        weight = None if pair.weight is None else F.max_pool2d(pair.weight, self.n, ceil_mode=True)
        return pair.map(self._pooled, weight=weight)

    def _pooled(self, feature: Tensor) -> Tensor:
        if self.pool == "max":
            if feature.device.type == "cpu":  # where pooling is several times faster with the channels innermost
                feature = feature.contiguous(memory_format=torch.channels_last)
            return F.max_pool2d(feature, self.n, ceil_mode=True)
        return F.avg_pool2d(feature, self.n, ceil_mode=True, count_include_pad=False)
