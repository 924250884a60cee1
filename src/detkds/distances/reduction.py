"""How distances read a pair: in float32 at least, with no gradient into the teacher, empty pairs as 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import Tensor

from detkds.precision import full_precision
from detkds.structures import Kind, Pair

ALL_KINDS: frozenset[Kind] = frozenset(("feature", "logits", "probability", "regression", "sides", "boxes"))
ROW_KINDS: frozenset[Kind] = frozenset(("feature", "logits", "probability"))
BOX_KINDS: frozenset[Kind] = frozenset(("sides", "boxes"))

Per = Literal["element", "position", "image"]
"""What a sum of elements is divided by: the weight of all elements, of all positions, or the number of images."""


def prepared(pair: Pair) -> Pair:
    """The pair with half precision widened to float32, and the teacher detached where it learned nothing."""
    teacher = pair.teacher if pair.teacher_learns else pair.teacher.detach()
    return replace(pair, student=full_precision(pair.student), teacher=full_precision(teacher))


def element_distance(pair: Pair, distance: Callable[[Tensor, Tensor], Tensor], per: Per = "element") -> Tensor:
    """The weighted values of a distance that maps two tensors to one value per element, reduced to a scalar.

    Args:
        per: ``element`` is their mean; ``position`` sums over dimension 1 and takes the mean over the positions;
            ``image`` is the sum over everything, divided by the size of dimension 0. A pair's divisor goes before.
    """
    pair = prepared(pair)
    values = distance(pair.student, pair.teacher)
    weight = pair.weight
    if per == "element" or pair.divisor is not None:
        return pair.mean(values)
    if weight is None or weight.shape[1] == 1:
        values = values.sum(1, keepdim=True)  # before the weights, which are the same for all of them
    total = (values if weight is None else values * weight).sum()
    if per == "image":
        return total / max(len(values), 1)
    positions = values.numel() // max(values.shape[1], 1)
    if weight is None:
        return total / max(positions, 1)
    share = weight.amax(1)
    count = share.sum() * (positions / max(share.numel(), 1))
    return total / (count + (count == 0))


def row_distance(pair: Pair, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Weighted mean of a distance that maps two tensors to one value per row, dimension 1 being consumed."""
    pair = prepared(pair).masked()
    if pair.student.numel() == 0:
        return pair.student.sum()
    return pair.row_mean(distance(pair.student, pair.teacher))
