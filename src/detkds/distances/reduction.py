"""How distances read a pair: in float32 at least, with no gradient into the teacher, empty pairs as 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from detkds.structures import Kind, Pair

ALL_KINDS: frozenset[Kind] = frozenset(("feature", "logits", "probability", "regression", "sides", "boxes"))
ROW_KINDS: frozenset[Kind] = frozenset(("feature", "logits", "probability"))
BOX_KINDS: frozenset[Kind] = frozenset(("sides", "boxes"))


def prepared(pair: Pair) -> Pair:
    """The pair with half precision widened to float32, and the teacher detached where it learned nothing."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

    teacher = pair.teacher if pair.teacher_learns else pair.teacher.detach()
    return replace(pair, student=wide(pair.student), teacher=wide(teacher))


def element_distance(pair: Pair, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Weighted mean of a distance that maps two tensors to one value per element."""
    pair = prepared(pair)
    return pair.mean(distance(pair.student, pair.teacher))


def row_distance(pair: Pair, distance: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Weighted mean of a distance that maps two tensors to one value per row, dimension 1 being consumed."""
    pair = prepared(pair).masked()
    if pair.student.numel() == 0:
        return pair.student.sum()
    return pair.row_mean(distance(pair.student, pair.teacher))
