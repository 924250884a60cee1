"""Attention: each side is re-weighted by where, or in which channel, it is strong itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from detkds.arguments import check_arguments
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair
from detkds.transforms.precision import wide


@TRANSFORMS.register("satt")
@dataclass(frozen=True)
class SpatialAttention:
    """Weigh each position by its share of the map's mean absolute activation.

    G = mean_c |F|, A = H W softmax_HW(G / tau), F -> A^power F. The mean of A over a map is 1.

    Shapes:  (N, C, H, W) -> (N, C, H, W)
    Source:  DetKDS, equation 4; the power 1/2 is that of the authors' code, ``power=1`` that of the paper.
    """

    stage: ClassVar[Literal["attention"]] = "attention"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    tau: float = 0.5
    power: float = 0.5

    def __post_init__(self) -> None:
        check_arguments(self)

    def __call__(self, pair: Pair) -> Pair:
        return pair.map(self._weighted)

    def _weighted(self, feature: Tensor) -> Tensor:
        feature = wide(feature)
        strength = feature.abs().mean(1, keepdim=True)
        return feature * _attention(strength.flatten(2), -1, self.tau, self.power).view_as(strength)


@TRANSFORMS.register("catt")
@dataclass(frozen=True)
class ChannelAttention:
    """Weigh each channel by its share of the image's mean absolute activation.

    G = mean_HW |F|, A = C softmax_C(G / tau), F -> A^power F. The mean of A over the channels is 1.

    Shapes:  (N, C, H, W) -> (N, C, H, W)
    Source:  DetKDS, equation 9; the power 1/2 is that of the authors' code, ``power=1`` that of the paper.
    """

    stage: ClassVar[Literal["attention"]] = "attention"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    tau: float = 0.5
    power: float = 0.5

    def __post_init__(self) -> None:
        check_arguments(self)

    def __call__(self, pair: Pair) -> Pair:
        return pair.map(self._weighted)

    def _weighted(self, feature: Tensor) -> Tensor:
        feature = wide(feature)
        strength = feature.abs().mean((2, 3), keepdim=True)
        return feature * _attention(strength, 1, self.tau, self.power)


def _attention(strength: Tensor, dim: int, tau: float, power: float) -> Tensor:
    """(n softmax(strength / tau))^power along ``dim``, in logarithms so that a share of 0 has a finite gradient."""
    log_share = torch.log_softmax(strength / tau, dim) + math.log(max(strength.shape[dim], 1))
    return (power * log_share).exp()
