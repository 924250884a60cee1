"""Distances of single numbers: absolute, squared and Huber.

All three take ``per``: ``element``, the weighted mean; ``position``, the sum over dimension 1 averaged over the
positions; ``image``, the weighted sum of everything divided by the number of images, the size of dimension 0.
Publications differ in it, so their weights fit their own choice alone.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from detkds.arguments import Positive, piece
from detkds.distances.reduction import ALL_KINDS, Per, element_distance
from detkds.protocols import Distance
from detkds.registry import DISTANCES
from detkds.structures import Kind, Pair


@DISTANCES.register("l1")
@piece
class L1(Distance):
    """Mean absolute difference, mean |s - t|.

    Shapes:  any -> ()
    Range:   [0, inf), in the units of the tensors.
    """

    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS

    per: Per = "element"

    def __call__(self, pair: Pair) -> Tensor:
        return element_distance(pair, lambda student, teacher: (student - teacher).abs(), self.per)


@DISTANCES.register("l2")
@piece
class L2(Distance):
    """Mean squared difference, mean (s - t)^2.

    Shapes:  any -> ()
    Range:   [0, inf), in the squared units of the tensors.
    Differs: DetKDS prints the root of the sum of squares; its code, like FitNets and PKD, has the mean of squares.
    """

    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS

    per: Per = "element"

    def __call__(self, pair: Pair) -> Tensor:
        return element_distance(pair, partial(F.mse_loss, reduction="none"), self.per)


@DISTANCES.register("smooth_l1")
@piece
class SmoothL1(Distance):
    """Squared where the sides are near, absolute where they are far.

    d^2 / (2 beta) where |d| < beta, else |d| - beta / 2, averaged over the elements.

    Shapes:  any -> ()
    Range:   [0, inf), in the units of the tensors.
    Source:  Fast R-CNN (Girshick, ICCV 2015), equation 3.
    """

    kinds: ClassVar[frozenset[Kind]] = ALL_KINDS

    beta: Positive = 1.0
    per: Per = "element"

    def __call__(self, pair: Pair) -> Tensor:
        return element_distance(pair, partial(F.smooth_l1_loss, reduction="none", beta=self.beta), self.per)
