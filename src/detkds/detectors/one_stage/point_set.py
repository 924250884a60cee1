"""Boxes from sets of points (Yang et al. 2019, RepPoints, arXiv 1904.11490, section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Conversion = Literal["moment", "minmax", "partial_minmax"]
"""How points become a box."""

_PARTIAL = 4
"""Points that span the box of ``partial_minmax``; the others are free."""

_TRANSFER_GRADIENT = 0.01
"""The factor of the transfer parameters' gradient: every box of a batch pulls at these two numbers."""


def minmax_boxes(points: Tensor) -> Tensor:
    """The smallest boxes ``(..., 4)`` around all points ``(..., P, 2)``."""
    return torch.cat((points.amin(-2), points.amax(-2)), dim=-1)


def partial_minmax_boxes(points: Tensor) -> Tensor:
    """The smallest boxes ``(..., 4)`` around the first four of the points ``(..., P, 2)``."""
    return minmax_boxes(points[..., :_PARTIAL, :])


def moment_boxes(points: Tensor, transfer: Tensor) -> Tensor:
    """Boxes ``(..., 4)`` around the mean of points ``(..., P, 2)``, half as wide and high as ``std * exp(transfer)``.

    ``transfer (2,)`` is of width and height; the deviation is the unbiased one. The gradient is finite where all
    points of a set are equal.
    """
    center = points.mean(-2)
    half = points.std(-2) * transfer.exp()
    return torch.cat((center - half, center + half), dim=-1)


class PointsToBoxes(nn.Module):
    """Points ``(..., P, 2)`` as (x, y) to boxes ``(..., 4)`` xyxy in the same units.

    Args:
        conversion: ``minmax``, ``partial_minmax`` or ``moment``, which learns its two transfer parameters.
    """

    def __init__(self, conversion: Conversion) -> None:
        super().__init__()
        self.conversion = conversion
        self.transfer = nn.Parameter(torch.zeros(2)) if conversion == "moment" else None

    def forward(self, points: Tensor) -> Tensor:
        """Convert."""
        if self.transfer is not None:
            return moment_boxes(points, scale_gradient(self.transfer, _TRANSFER_GRADIENT))
        return minmax_boxes(points) if self.conversion == "minmax" else partial_minmax_boxes(points)


def scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same numbers, bit for bit, through which ``factor`` of the gradient flows back."""
    fixed = tensor.detach()
    return fixed + factor * (tensor - fixed)
