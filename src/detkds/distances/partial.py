"""The squared difference, less where a ReLU would hide it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from detkds.arguments import piece
from detkds.distances.reduction import Per, element_distance
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair


@DISTANCES.register("l2_partial")
@piece
class PartialL2(Distance):
    """Squared difference to the teacher's margin ReLU, 0 where both are on its inactive side.

    With t' = max(t, m): (s - t')^2 where s > t' or t' > 0, else 0. The margin m of a channel is the mean of the
    teacher's negative numbers in it, over the batch and all positions whatever their weight; 0 where there are none.

    Shapes:  any (N, C, ...) -> ()
    Range:   [0, inf), in the squared units of the tensors.
    Source:  Overhaul (Heo et al., ICCV 2019), equations 1-4.
    Differs: the authors compute the margin from the batch normalisation before the ReLU, as the mean of the negative
        half of a normal distribution.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset(("feature",))

    per: Per = "element"

    def __call__(self, pair: Pair) -> Tensor:
        return element_distance(pair, _squares, self.per)


def _squares(student: Tensor, teacher: Tensor) -> Tensor:
    target = torch.maximum(teacher, _margin(teacher))
    return (student - target).square() * ((student > target) | (target > 0))


def _margin(teacher: Tensor) -> Tensor:
    """``(1, C, 1, ...)``: the mean of the negative numbers of each channel."""
    others = (0, *range(2, teacher.ndim))
    count = (teacher < 0).sum(others, keepdim=True)
    return teacher.clamp(max=0).sum(others, keepdim=True) / count.clamp_min(1)
