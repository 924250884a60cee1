"""Normalisation: along one axis, or per channel over the whole batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkds.arguments import piece
from detkds.precision import full_precision
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair

_STD_EPS = 1e-6
_NORM_EPS = 1e-12


@TRANSFORMS.register("norm")
@piece
class Normalize(Transform):
    """Bring both sides to one scale along an axis: ``HW`` the positions, ``C`` the channels, ``N`` the batch.

    With sums over the n elements of the axis: ``std`` (x - mean) / (sigma + 1e-6), biased sigma; ``l2`` x / ||x||;
    ``rms`` sqrt(n) x / ||x||. ``auto`` is ``std``, except that along a batch of one there is nothing to compare with
    (identity), and that standardising two or three samples leaves hardly a gradient (``rms``).

    Shapes:     any (N, C, ...) -> the same
    Degenerate: constant elements become 0 under ``std``; zeros stay 0.
    Source:     DetKDS, equation 6 (``std``); the authors' code has ``l2``.
    """

    stage: ClassVar[Stage] = "normalise"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature", "logits": "logits"}

    axis: Literal["HW", "C", "N"]
    mode: Literal["auto", "std", "l2", "rms"] = "auto"

    def __call__(self, pair: Pair) -> Pair:
        dims = self._dims(pair.student)
        mode = self.mode
        if mode == "auto":
            mode = "std"
            if self.axis == "N" and pair.student.shape[0] < 4:
                if pair.student.shape[0] < 2:
                    return pair
                mode = "rms"
        if mode == "std":
            return pair.map(lambda tensor: _standardised(tensor, dims))
        return pair.map(lambda tensor: _unit(tensor, dims, rms=mode == "rms"))

    def _dims(self, tensor: Tensor) -> tuple[int, ...]:
        if self.axis != "HW":
            return (1,) if self.axis == "C" else (0,)
        if tensor.ndim < 3:
            raise ValueError(f"norm(HW): expected maps of shape (N, C, ...), got rows of shape {tuple(tensor.shape)}")
        return tuple(range(2, tensor.ndim))


@TRANSFORMS.register("norm_batch")
@piece
class NormalizeBatch(Transform):
    """Standardise each channel over the batch and all positions: (x - mean) / (sigma + 1e-6).

    Followed by ``l2`` it is twice one minus the Pearson correlation of each channel.

    Args:
        unbiased: whether sigma^2 is the sum of squares over n - 1 and not over n, n the numbers of a channel. One
            number alone becomes 0 either way.

    Shapes:  any (N, C, ...) -> the same
    Source:  PKD (Cao et al., NeurIPS 2022), equation 3; ``unbiased`` as in the authors' code. No running statistics.
    """

    unbiased: bool = False

    stage: ClassVar[Stage] = "normalise"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature", "logits": "logits"}

    def __call__(self, pair: Pair) -> Pair:
        dims = (0, *range(2, pair.student.ndim))
        return pair.map(lambda tensor: _standardised(tensor, dims, unbiased=self.unbiased))


def _standardised(tensor: Tensor, dims: tuple[int, ...], *, unbiased: bool = False) -> Tensor:
    count = math.prod(tensor.shape[dim] for dim in dims)
    return cast(
        Tensor, _Standardise.apply(full_precision(tensor), dims, count / max(1, count - 1) if unbiased else 1.0)
    )


class _Standardise(torch.autograd.Function):
    """y = (x - mean) / (sigma + 1e-6) over ``dims`` with its gradient in closed form, in a third of autograd's time.

    With sigma^2 = ratio mean((x - mean)^2): dx = (g - mean(g) - ratio y mean(g y) (sigma + 1e-6) / sigma)
    / (sigma + 1e-6); the last part is 0 where sigma is 0.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dims: tuple[int, ...], ratio: float) -> Tensor:
        centred = tensor - tensor.mean(dims, keepdim=True)
        sigma = centred.square().mean(dims, keepdim=True).mul_(ratio).sqrt_()
        scale = sigma + _STD_EPS
        ctx.dims, ctx.ratio = dims, ratio
        ctx.save_for_backward(centred.div_(scale), sigma, scale)
        return centred

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        result, sigma, scale = ctx.saved_tensors
        along = (gradient * result).mean(ctx.dims, keepdim=True)
        along = torch.where(sigma > 0, along * scale / sigma, 0.0).mul_(ctx.ratio)
        change = torch.addcmul(gradient, result, along, value=-1)
        return change.sub_(gradient.mean(ctx.dims, keepdim=True)).div_(scale), None, None


def _unit(tensor: Tensor, dims: tuple[int, ...], *, rms: bool) -> Tensor:
    tensor = full_precision(tensor)
    length = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
    if rms:
        size = 1
        for dim in dims:
            size *= tensor.shape[dim]
        tensor = tensor * size**0.5
    return tensor / length.clamp_min(_NORM_EPS)
