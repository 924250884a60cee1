"""Correlation of each class over the rows."""

from __future__ import annotations

import warnings
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from detkds.arguments import piece
from detkds.distances.reduction import ROW_KINDS, prepared
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair

_EPS = 1e-6


@DISTANCES.register("correlation")
@piece
class Correlation(Distance):
    """How far each channel's correlation of student and teacher is from 1, on a logarithmic scale.

    D = log2(sum_k |v_k - 1|^(2 alpha) + 1e-6), v_k the correlation of channel k over all M rows (batch and positions),
    each side standardised with biased sigma + 1e-6. Rows are weighted by the pair's weight.

    Shapes:     (N, K, ...) -> ()
    Range:      [-19.9, inf), no unit; its lowest value, log2(1e-6), is at equality, and it may be negative.
    Degenerate: a single row has no correlation: 0, with a warning. A constant channel counts as v = 0.
    Source:     ITRD (Miles et al., 2022), equation 4; alpha as in DetKDS.
    Differs:    the code of DetKDS has an unbiased sigma and takes the images as its only rows.
    """

    kinds: ClassVar[frozenset[Kind]] = ROW_KINDS

    alpha: Annotated[float, Field(gt=0.5)] = 1.01

    def __call__(self, pair: Pair) -> Tensor:
        pair = prepared(pair).masked()
        student, teacher = _rows(pair.student), _rows(pair.teacher)
        if student.numel() == 0:
            return student.sum()
        if len(student) == 1:
            warnings.warn("one row has no correlation, the distance counts as 0", RuntimeWarning, stacklevel=2)
            return 0 * student.sum()
        weight = self._row_weight(pair, student)
        agreement = (weight * _standardised(student, weight) * _standardised(teacher, weight)).sum(0)
        distance = torch.log2((agreement - 1).abs().pow(2 * self.alpha).sum() + _EPS)
        return torch.where((weight > 0).sum() > 1, distance, 0.0)

    def _row_weight(self, pair: Pair, rows: Tensor) -> Tensor:
        """Shares of the rows, ``(M, 1)``, that sum to 1."""
        if pair.weight is None:
            return rows.new_full((len(rows), 1), 1 / len(rows))
        position = pair.weight.amax(1, keepdim=True).to(rows.dtype)
        weight = _rows(position.expand(pair.student.shape[0], 1, *pair.student.shape[2:]))
        return weight / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).flatten(0, -2)


def _standardised(rows: Tensor, weight: Tensor) -> Tensor:
    centred = rows - (weight * rows).sum(0)
    variance = (weight * centred.square()).sum(0)
    positive = variance > 0
    sigma = torch.where(positive, torch.where(positive, variance, 1.0).sqrt(), 0.0)
    return centred / (sigma + _EPS)
