"""Relations: how the channels, or the images or objects of a batch, stand to each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from detkds.arguments import Count, piece
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


@TRANSFORMS.register("affinity")
@piece
class Affinity(Transform):
    """Cosines between all positions of an image, one row for each position.

    Channels may differ in meaning, and would in number. A row counts by its position's weight; positions of weight 0
    are strangers to all others, by a cosine of 0.

    Args:
        positions: the most that a map may have. A larger one is averaged first, over the smallest squares of cells that
            leave no more.

    Shapes:     (N, C, H, W) -> (N H W, H W)
    Degenerate: a position of zeros has cosines of 0.
    Source:     the local loss of LightlyTrain's third distillation (2026), followed by ``kl``.
    """

    stage: ClassVar[Stage] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "logits"}

    positions: Count = 1024

    def __call__(self, pair: Pair) -> Pair:
        pair = pair.map(full_precision)
        weight = pair.weight
        if weight is not None:
            weight = weight.amax(1, keepdim=True).expand(len(pair.student), -1, *pair.student.shape[2:])
            counted = weight > 0
            pair = pair.map(lambda tensor: tensor * counted)
        side = next(n for n in itertools.count(1) if self._fits(pair.student.shape[2:], n))
        if side > 1:
            pair = pair.map(lambda tensor: avg_pool2d(tensor, side, ceil_mode=True))
            weight = None if weight is None else avg_pool2d(weight, side, ceil_mode=True)
        return pair.map(_cosines, kind=self.kinds[pair.kind], weight=None if weight is None else weight.reshape(-1, 1))

    def _fits(self, size: torch.Size, side: int) -> bool:
        return math.prod(-(-length // side) for length in size) <= self.positions


def _cosines(feature: Tensor) -> Tensor:
    columns = feature.flatten(2)
    columns = columns / torch.linalg.vector_norm(columns, dim=1, keepdim=True).clamp_min(_NORM_EPS)
    return (columns.transpose(1, 2) @ columns).flatten(0, 1)


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
