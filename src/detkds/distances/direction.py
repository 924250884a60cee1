"""Distances of directions: cosine, and cosine of centred rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detkds.distances.reduction import ROW_KINDS, row_distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair

_EPS = 1e-8


@DISTANCES.register("cosine")
@dataclass(frozen=True)
class Cosine:
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
        return row_distance(pair, lambda student, teacher: _one_minus_cosine(student, teacher, 0.0, 0.0))


@DISTANCES.register("pearson")
@dataclass(frozen=True)
class Pearson:
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
        return row_distance(pair, _one_minus_correlation)


def _one_minus_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    rounding = 8 * torch.finfo(student.dtype).eps
    return _one_minus_cosine(
        student - student.mean(1, keepdim=True),
        teacher - teacher.mean(1, keepdim=True),
        rounding * torch.linalg.vector_norm(student.detach(), dim=1, keepdim=True),
        rounding * torch.linalg.vector_norm(teacher, dim=1, keepdim=True),
    )


def _one_minus_cosine(
    student: Tensor, teacher: Tensor, student_floor: Tensor | float, teacher_floor: Tensor | float
) -> Tensor:
    """One value per row; rows no longer than 1e-8 or their floor have no direction."""
    student, student_has = _direction(student, student_floor)
    teacher, teacher_has = _direction(teacher, teacher_floor)
    return torch.where(student_has | teacher_has, 1 - (student * teacher).sum(1), 0.0)


def _direction(rows: Tensor, floor: Tensor | float) -> tuple[Tensor, Tensor]:
    """Rows scaled to length 1, and which rows have a length to scale; the others are 0 with zero gradient."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    has_length = (length > _EPS) & (length > floor)
    unit = torch.where(has_length, rows / torch.where(has_length, length, 1.0), 0.0)
    return unit, has_length.squeeze(1)
