"""Attention: each side is re-weighted by where, or in which channel, it or the teacher is strong; or is that itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from detkds.arguments import Count, Positive, piece
from detkds.precision import full_precision
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair


@TRANSFORMS.register("satt")
@piece
class SpatialAttention(Transform):
    """Weigh each position by its share of the map's mean absolute activation.

    G = mean_c |F|, A = H W softmax_HW(G / tau), F -> A^power F. The mean of A over a map is 1.

    Args:
        source: whose F makes A: each side's ``own``, or the ``teacher``'s for both.

    Shapes:  (N, C, H, W) -> (N, C, H, W)
    Source:  DetKDS, equation 4; the power 1/2 is that of the authors' code, ``power=1`` that of the paper.
    """

    stage: ClassVar[Stage] = "attention"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    tau: Positive = 0.5
    power: Positive = 0.5
    source: Literal["own", "teacher"] = "own"

    def __call__(self, pair: Pair) -> Pair:
        return _weighted(pair, self.source, lambda feature: _spatial(feature, self.tau, self.power))


@TRANSFORMS.register("catt")
@piece
class ChannelAttention(Transform):
    """Weigh each channel by its share of the image's mean absolute activation.

    G = mean_HW |F|, A = C softmax_C(G / tau), F -> A^power F. The mean of A over the channels is 1.

    Args:
        source: whose F makes A: each side's ``own``, or the ``teacher``'s for both.

    Shapes:  (N, C, H, W) -> (N, C, H, W)
    Source:  DetKDS, equation 9; the power 1/2 is that of the authors' code, ``power=1`` that of the paper.
    """

    stage: ClassVar[Stage] = "attention"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    tau: Positive = 0.5
    power: Positive = 0.5
    source: Literal["own", "teacher"] = "own"

    def __call__(self, pair: Pair) -> Pair:
        return _weighted(pair, self.source, lambda feature: _channel(feature, self.tau, self.power))


@TRANSFORMS.register("focal")
@piece
class FocalAttention(Transform):
    """Weigh both sides by where, and in which channels, the teacher is strong.

    F -> sqrt(A_S A_C) F with the A of ``satt`` and ``catt``, both of the teacher's map as it comes, so that a squared
    difference is multiplied by A_S A_C. Of two steps the second would see a map that the first has changed.

    Shapes:  (N, C, H, W) -> (N, C, H, W)
    Source:  FGD (Yang et al., CVPR 2022), section 3.1.
    """

    stage: ClassVar[Stage] = "attention"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    tau: Positive = 0.5

    def __call__(self, pair: Pair) -> Pair:
        return _weighted(
            pair, "teacher", lambda feature: _spatial(feature, self.tau, 0.5) * _channel(feature, self.tau, 0.5)
        )


@TRANSFORMS.register("att_map")
@piece
class AttentionMap(Transform):
    """Each side becomes its own attention: the A of ``satt`` (``spatial``) or of ``catt`` (``channel``).

    Args:
        over: the positions or the channels.
        tau: temperature of the softmax.
        exponent: G is the mean of |F| to this power.
        softmax: false gives G itself.

    Shapes:  (N, C, H, W) -> (N, 1, H, W) or (N, C, 1, 1), the latter without weights of positions
    Source:  FGD (Yang et al., CVPR 2022), section 3.1; AT (Zagoruyko and Komodakis, ICLR 2017), equation 1, with
        ``exponent=2, softmax=false`` and normalised over the positions.
    """

    stage: ClassVar[Stage] = "attention"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    over: Literal["spatial", "channel"]
    tau: Positive = 0.5
    exponent: Count = 1
    softmax: bool = True

    def __call__(self, pair: Pair) -> Pair:
        if self.over == "channel":
            return pair.map(self._attention, weight=None)
        return pair.map(self._attention, weight=None if pair.weight is None else pair.weight.amax(1, keepdim=True))

    def _attention(self, feature: Tensor) -> Tensor:
        feature = full_precision(feature).abs().pow(self.exponent)
        if self.softmax:
            return (_spatial if self.over == "spatial" else _channel)(feature, self.tau, 1.0)
        return feature.mean(1 if self.over == "spatial" else (2, 3), keepdim=True)


def _weighted(pair: Pair, source: str, attention: Callable[[Tensor], Tensor]) -> Pair:
    if source == "teacher":
        shared = attention(full_precision(pair.teacher.detach()))
        return pair.map(lambda feature: full_precision(feature) * shared)
    return pair.map(lambda feature: full_precision(feature) * attention(full_precision(feature)))


def _spatial(feature: Tensor, tau: float, power: float) -> Tensor:
    """A^power over the positions: ``(N, 1, H, W)``."""
    strength = feature.abs().mean(1, keepdim=True)
    return _attention(strength.flatten(2), -1, tau, power).view_as(strength)


def _channel(feature: Tensor, tau: float, power: float) -> Tensor:
    """A^power over the channels: ``(N, C, 1, 1)``."""
    return _attention(feature.abs().mean((2, 3), keepdim=True), 1, tau, power)


def _attention(strength: Tensor, dim: int, tau: float, power: float) -> Tensor:
    """(n softmax(strength / tau))^power along ``dim``, in logarithms so that a share of 0 has a finite gradient."""
    log_share = torch.log_softmax(strength / tau, dim) + math.log(max(strength.shape[dim], 1))
    return (power * log_share).exp()
