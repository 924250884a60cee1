"""The logarithm of all differences together."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from detkds.arguments import Positive, piece
from detkds.distances.reduction import ALL_KINDS, prepared
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair

_EPS = 1e-6


@DISTANCES.register("logsum")
@piece
class LogSum(Distance):
    """Logarithm of the sum of the differences to a power, over everything: log(sum |s - t|^alpha + 1e-6).

    The gradient does not grow with the differences: it is that of the sum, divided by it. With weights the sum is the
    number of the elements times their weighted mean.

    Shapes:  any -> ()
    Range:   [-13.8, inf), no unit; its lowest value, log(1e-6), is at equality, and it may be negative.
    Source:  SRD (Miles and Mikolajczyk, AAAI 2024), section 3.3, with alpha 4 of the authors' code.
    Differs: the code adds nothing to the sum.
    """

    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS

    alpha: Positive = 4.0

    def __call__(self, pair: Pair) -> Tensor:
        pair = prepared(pair)
        differences = (pair.student - pair.teacher).abs().pow(self.alpha)
        if differences.numel() == 0:
            return differences.sum()
        return torch.log(differences.numel() * pair.mean(differences) + _EPS)
