"""Structural similarity of maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from detkds.arguments import OddCount, Positive, piece
from detkds.distances.reduction import prepared
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair

_K1, _K2, _LEAST_RANGE = 0.01, 0.03, 1e-3
_LARGE = 64
"""Cells along a side beyond which a map is convolved."""
_AT_ONCE = 2**18
"""Numbers of a map that a CPU works on at once: its memory is taken and given back quickly in small pieces."""
_BLOCK = 16
"""Channels that a CPU's convolutions take together."""


@DISTANCES.register("ssim")
@piece
class StructuralSimilarity(Distance):
    """Half of one minus the structural similarity of each channel around each position.

    D = mean (1 - SSIM) / 2 with SSIM = (2 m_s m_t + C1)(2 cov + C2) / ((m_s^2 + m_t^2 + C1)(v_s + v_t + C2)),
    C = (k L)^2, k = 0.01 and 0.03, L the range of the teacher's sample (at least 0.001). Means, variances and
    covariance are taken under a Gaussian of ``sigma`` cells over ``window`` x ``window`` cells, or over the largest odd
    window that the map holds. Windows are cut at the border, so that each position counts.

    Shapes:     (N, C, H, W) -> ()
    Range:      [0, 1], no unit.
    Source:     Wang et al. (2004), equation 13; for detectors SKD (de Rijk et al., 2022).
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset(("feature",))

    window: OddCount = 11
    sigma: Positive = 1.5

    def __call__(self, pair: Pair) -> Tensor:
        if pair.student.ndim != 4:
            raise ValueError(f"ssim: expected maps of shape (N, C, H, W), got {tuple(pair.student.shape)}")
        pair = prepared(pair).masked()
        if pair.student.numel() == 0:
            return pair.student.sum()
        with torch.autocast(pair.student.device.type, enabled=False):
            return pair.mean(self._distance(pair.student, pair.teacher))

    def _distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        extent = teacher.amax((1, 2, 3), keepdim=True) - teacher.amin((1, 2, 3), keepdim=True)
        constants = [(k * extent.clamp_min(_LEAST_RANGE)).square() for k in (_K1, _K2)]
        blur = _Blur(teacher, min(self.window, *((size - 1) // 2 * 2 + 1 for size in teacher.shape[2:])), self.sigma)
        step = student.shape[1]
        if student.device.type == "cpu":
            step = max(_BLOCK, _AT_ONCE // student[:, 0].numel() // _BLOCK * _BLOCK)
        parts = zip(student.split(step, 1), teacher.split(step, 1), strict=True)
        return torch.cat([_distance(*part, blur, *constants) for part in parts], 1)


def _distance(student: Tensor, teacher: Tensor, blur: Callable[[Tensor], Tensor], c1: Tensor, c2: Tensor) -> Tensor:
    # Moments of second order do not feel a shift: taking the level of each map out keeps their digits.
    student_level = student.detach().mean((2, 3), keepdim=True)
    teacher_level = teacher.mean((2, 3), keepdim=True)
    student, teacher = student - student_level, teacher - teacher_level
    student_mean, teacher_mean = blur(student), blur(teacher)
    # No more is needed of the two variances than their sum, which spares a window.
    squares = blur(student.square() + teacher.square())
    variances = (squares - (student_mean.square() + teacher_mean.square())).clamp_min(0)
    covariance = blur(student * teacher) - student_mean * teacher_mean
    student_mean, teacher_mean = student_mean + student_level, teacher_mean + teacher_level
    shared = (2 * student_mean * teacher_mean + c1) * (2 * covariance + c2)
    own = (student_mean.square() + (teacher_mean.square() + c1)) * (variances + c2)
    return torch.rsub(shared / own, 0.5, alpha=0.5)


class _Blur:
    """Mean under a Gaussian window around each position, over the cells that lie on the map.

    The window is separable and so is its mass on the map: one product per axis with a matrix on small maps, one
    convolution per axis on a CPU's large ones, each where it is the faster.
    """

    def __init__(self, like: Tensor, window: int, sigma: float) -> None:
        self.rows, self.columns = (_window_shares(size, window, sigma, like) for size in like.shape[2:])
        self.reach = window // 2
        self.convolves = like.device.type == "cpu" and max(like.shape[2:]) > _LARGE
        if self.convolves:
            offsets = torch.arange(-self.reach, self.reach + 1, device=like.device, dtype=like.dtype)
            self.kernel = torch.exp(-offsets.square() / (2 * sigma**2))
            # The largest share in a row is that of the cell itself, 1 over the mass of the window there.
            self.mass = (1 / self.rows.diagonal())[:, None] * (1 / self.columns.diagonal())

    def __call__(self, maps: Tensor) -> Tensor:
        if not self.convolves:
            return self.rows @ maps @ self.columns.T
        down, across = (
            self.kernel.view(1, 1, *shape).expand(maps.shape[1], 1, *shape)
            for shape in ((len(self.kernel), 1), (1, len(self.kernel)))
        )
        maps = functional.conv2d(maps, down, padding=(self.reach, 0), groups=maps.shape[1])
        return functional.conv2d(maps, across, padding=(0, self.reach), groups=maps.shape[1]) / self.mass


def _window_shares(size: int, window: int, sigma: float, like: Tensor) -> Tensor:
    """``(size, size)``: the share of each cell (column) in the window around each position (row)."""
    cells = torch.arange(size, device=like.device, dtype=like.dtype)
    offsets = cells - cells[:, None]
    shares = torch.exp(-offsets.square() / (2 * sigma**2)) * (offsets.abs() <= window // 2)
    return shares / shares.sum(1, keepdim=True)
