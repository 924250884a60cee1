"""The length of the difference."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from detkds.arguments import piece
from detkds.distances.reduction import ALL_KINDS, prepared
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair


@DISTANCES.register("euclidean")
@piece
class Euclidean(Distance):
    """Root of the weighted sum of squares over everything, sqrt(sum w (s - t)^2).

    Shapes:  any -> ()
    Range:   [0, inf), in the units of the tensors, growing with their size; at 0 the gradient is 0.
    Source:  FKD (Zhang and Ma, ICLR 2021), equations 5-7.
    """

    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS

    def __call__(self, pair: Pair) -> Tensor:
        pair = prepared(pair)
        difference = pair.student - pair.teacher
        if pair.weight is not None:
            difference = difference * pair.weight.sqrt()
        return torch.linalg.vector_norm(difference)
