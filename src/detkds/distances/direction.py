"""Distances of directions: cosine, and cosine of centred rows."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from detkds.arguments import piece
from detkds.distances.reduction import ROW_KINDS, row_distance
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair

_EPS = 1e-8


@DISTANCES.register("cosine")
@piece
class Cosine(Distance):
    """One minus the cosine of the angle between student and teacher rows.

    D = 1 - <s, t> / (||s|| ||t||) over dimension 1, averaged over the rows.

    Shapes:     (N, C, ...) -> ()
    Range:      [0, 2], no unit; invariant to a positive factor per row.
    Degenerate: a row of length < 1e-8 has no direction. It counts as 1 with zero gradient, and as 0 where the other
                side has none either.
    Differs:    the code of DetKDS minimises the similarity itself.
    """

    kinds: ClassVar[frozenset[Kind]] = ROW_KINDS

    def __call__(self, pair: Pair) -> Tensor:
        return row_distance(pair, partial(_one_minus_similarity, centred=False))


@DISTANCES.register("pearson")
@piece
class Pearson(Distance):
    """One minus the correlation of student and teacher along each row.

    D = 1 - cov(s, t) / (sigma(s) sigma(t)) over dimension 1, averaged over the rows.

    Shapes:     (N, C, ...) -> ()
    Range:      [0, 2], no unit; invariant to a positive factor and a shift per row.
    Degenerate: a row that is constant up to rounding has no correlation. It counts as 1 with zero gradient, and as 0
                where the other side is constant too.
    Source:     DetKDS, appendix D, with the axis of the authors' code; DIST (Huang et al., NeurIPS 2022), equation 5.
    Differs:    PKD correlates each channel over batch and positions: that is ``norm_batch`` with ``l2``.
    """

    kinds: ClassVar[frozenset[Kind]] = ROW_KINDS

    def __call__(self, pair: Pair) -> Tensor:
        return row_distance(pair, partial(_one_minus_similarity, centred=True))


def _one_minus_similarity(student: Tensor, teacher: Tensor, *, centred: bool) -> Tensor:
    """One value per row; what has no direction is described above."""
    return 1 - cast(Tensor, _Similarity.apply(student, teacher, centred))


class _Similarity(torch.autograd.Function):
    """Cosine of student and teacher rows, centred if asked, with its gradient in closed form.

    With r = <s, t> / (||s|| ||t||): dr/ds = t / (||s|| ||t||) - r s / ||s||^2, which is centred where s and t are.
    Several times faster than autograd's own, which passes over all elements for every factor.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, centred: bool) -> Tensor:
        student, from_student = _with_inverse_length(student, centred)
        teacher, from_teacher = _with_inverse_length(teacher, centred)
        across = from_student * from_teacher
        similarity = (student * teacher).sum(1, keepdim=True) * across
        ctx.save_for_backward(student, teacher, across, similarity * from_student.square())
        # Two rows without a direction are equal.
        return torch.where((from_student == 0) & (from_teacher == 0), 1.0, similarity).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        student, teacher, across, own = ctx.saved_tensors
        gradient = gradient.unsqueeze(1)
        return torch.addcmul(teacher * (gradient * across), student, gradient * own, value=-1), None, None


def _with_inverse_length(rows: Tensor, centred: bool) -> tuple[Tensor, Tensor]:
    """The rows, centred if asked, and one over their length; 0 where that is below 1e-8 or only rounding."""
    mean = rows.mean(1, keepdim=True) if centred else rows.new_zeros(())
    rows = rows - mean if centred else rows
    length = rows.square().sum(1, keepdim=True).sqrt_()
    rounding = 8 * torch.finfo(rows.dtype).eps * torch.hypot(length, mean * rows.shape[1] ** 0.5)
    return rows, torch.where((length > _EPS) & (length > rounding), 1 / length, 0.0)
