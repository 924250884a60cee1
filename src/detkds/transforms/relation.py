"""Relations: how the channels, or the images or objects of a batch, stand to each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from detkds.arguments import piece
from detkds.precision import full_precision
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair

_NORM_EPS = 1e-12


@TRANSFORMS.register("gram")
@piece
class Gram(Transform):
    """Inner products between the channels of each image (``C``) or between the maps of a batch (``N``).

    Every row is brought to length 1. Positions count in the products by the pair's weight, which ends here.

    Shapes:     C: (N, C, H, W) -> (N C, C);  N: (N, C, H, W) -> (N, N)
    Degenerate: a row of zeros stays so.
    Source:     ICKD (Liu et al., ICCV 2021), section 3 (``C``, with ``l2(per=position)``); SP (Tung and Mori,
        ICCV 2019), equations 1-4 (``N``, with ``l2``).
    """

    stage: ClassVar[Stage] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "logits"}

    axis: Literal["C", "N"]

    def __call__(self, pair: Pair) -> Pair:
        pair = _counted(pair)
        return pair.map(self._products, kind=self.kinds[pair.kind], weight=None)

    def _products(self, feature: Tensor) -> Tensor:
        rows = feature.flatten(2) if self.axis == "C" else feature.flatten(1)
        products = (rows @ rows.transpose(-1, -2)).flatten(0, -2)
        return products / torch.linalg.vector_norm(products, dim=-1, keepdim=True).clamp_min(_NORM_EPS)


@TRANSFORMS.register("pairwise")
@piece
class PairwiseDistances(Transform):
    """Euclidean distances between all maps of a batch, be they images or objects, in units of their mean.

    A map's distance to itself neither counts in the mean nor carries weight after it. Positions count in the
    distances by the pair's weight, which ends here.

    Shapes:     (R, C, H, W) -> (R, R)
    Degenerate: distances that are all 0 stay so; a single map has none.
    Source:     RKD (Park et al., CVPR 2019), equations 5 and 6; GID (Dai et al., CVPR 2021), section 3, between
        instances.
    """

    stage: ClassVar[Stage] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "logits"}

    def __call__(self, pair: Pair) -> Pair:
        pair = _counted(pair)
        others = 1 - torch.eye(len(pair.student), device=pair.student.device, dtype=pair.student.dtype)
        return pair.map(_relative_distances, kind=self.kinds[pair.kind], weight=others)


def _relative_distances(feature: Tensor) -> Tensor:
    rows = feature.flatten(1)
    # By products of matrices, which are fast; in float32 their rounding would be larger than the distance of near rows.
    centred = (rows - rows.detach().mean(0)).double()
    distances = torch.cdist(centred, centred).to(rows)
    mean = distances.sum() / max(len(rows) * (len(rows) - 1), 1)
    return distances / mean.clamp_min(_NORM_EPS)


def _counted(pair: Pair) -> Pair:
    """Both sides with every position multiplied by the root of its weight, so that products count by the weight."""
    pair = pair.map(full_precision)
    if pair.weight is None:
        return pair
    root = pair.weight.sqrt()
    return pair.map(lambda tensor: tensor * root)
