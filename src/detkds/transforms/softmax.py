"""Responses as shares of one."""

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


@TRANSFORMS.register("softmax")
@piece
class Softmax(Transform):
    """Softmax over the channels (``C``: the classes, or the four sides of a box), or across samples (``N``).

    Across samples means the batch for logits, and the positions of one image and level for regression, where the
    rows of a region response count as the positions.

    Shapes:  any (N, K, ...) -> the same
    Source:  DetKDS, tables 2 and 5.
    """

    stage: ClassVar[Stage] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"logits": "probability", "regression": "sides"}

    axis: Literal["C", "N"] = "C"

    def __call__(self, pair: Pair) -> Pair:
        if self.axis == "C":
            return pair.map(lambda tensor: torch.softmax(full_precision(tensor), 1), kind=self.kinds[pair.kind])
        over_batch = pair.kind == "logits" or pair.student.ndim == 2
        share = _over_batch if over_batch else _over_positions
        return pair.map(share, kind=self.kinds[pair.kind])


def _over_batch(tensor: Tensor) -> Tensor:
    return torch.softmax(full_precision(tensor), 0)


def _over_positions(tensor: Tensor) -> Tensor:
    return torch.softmax(full_precision(tensor).flatten(2), 2).view_as(tensor)
