"""How far the distributions of a channel's numbers are apart, wherever on the map they stand."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from detkds.arguments import Count, Positive, piece
from detkds.distances.reduction import prepared
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair

_EPS = 1e-5


@DISTANCES.register("gauss_w2")
@piece
class GaussianWasserstein(Distance):
    """Squared 2-Wasserstein distance of the normal distributions that each channel has in each part of the map.

    D = sum_c [ratio (m_s - m_t)^2 + (d_s - d_t)^2], averaged over the images and the ``grid`` x ``grid`` parts, m the
    mean of a channel over a part's positions and d = sqrt(v + 1e-5) with v their unbiased variance. Parts overlap by a
    row or column where the grid does not divide the map, as with adaptive pooling. Positions count by the pair's
    weight; a part without any counts 0.

    Shapes:     (N, C, H, W) -> ()
    Range:      [0, inf), in the squared units of the tensors.
    Degenerate: a part with a single position has variance 0.
    Source:     WKD (Lv et al., NeurIPS 2024), equations 9 and 10, with the reduction of the authors' code.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset(("feature",))

    grid: Count = 1
    ratio: Positive = 1.0

    def __call__(self, pair: Pair) -> Tensor:
        if pair.student.ndim != 4:
            raise ValueError(f"gauss_w2: expected maps of shape (N, C, H, W), got {tuple(pair.student.shape)}")
        pair = prepared(pair)
        if pair.student.numel() == 0:
            return pair.student.sum()
        parts = _Parts(pair, self.grid)
        (student_mean, student_deviation), (teacher_mean, teacher_deviation) = map(parts, (pair.student, pair.teacher))
        means = (student_mean - teacher_mean).square()
        deviations = (student_deviation - teacher_deviation).square()
        return (self.ratio * means + deviations).sum(1).mean()


class _Parts:
    """Mean and deviation of maps under a grid."""

    def __init__(self, pair: Pair, grid: int) -> None:
        student = pair.student
        self.weight = student.new_ones(1, 1, *student.shape[2:]) if pair.weight is None else pair.weight
        self.rows, self.columns = (_membership(size, grid, student) for size in student.shape[2:])
        self.total = self._sum(self.weight)
        count = self._sum((self.weight > 0).to(student))
        self.unbiased = count / (count - 1).clamp_min(1)
        self.there = self.total > 0

    def __call__(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, C, H, W)`` to mean and deviation ``(N, C, grid, grid)``."""
        level = maps.detach().mean((2, 3), keepdim=True)  # out of the squares, which keeps their digits
        centred, total = maps - level, torch.where(self.there, self.total, 1.0)
        mean = self._sum(self.weight * centred) / total
        square = self._sum(self.weight * centred.square()) / total
        variance = ((square - mean.square()) * self.unbiased).clamp_min(0)
        deviation = (variance + _EPS).sqrt()
        return torch.where(self.there, mean + level, 0.0), torch.where(self.there, deviation, 0.0)

    def _sum(self, maps: Tensor) -> Tensor:
        return self.rows @ maps @ self.columns.T


def _membership(size: int, grid: int, like: Tensor) -> Tensor:
    """``(grid, size)`` of 0 and 1: the cells of each part along one axis."""
    cells, parts = torch.arange(size, device=like.device), torch.arange(grid, device=like.device)[:, None]
    first, last = parts * size // grid, -(-(parts + 1) * size // grid)
    return ((cells >= first) & (cells < last)).to(like)
