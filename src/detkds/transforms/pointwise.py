"""Functions of single numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from detkds.arguments import piece
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair


@TRANSFORMS.register("sigmoid")
@piece
class Sigmoid(Transform):
    """1 / (1 + exp(-x)) of every number: logits become probabilities, regression the sides of a box.

    Shapes:  any -> the same
    Source:  DetKDS, table 2.
    """

    stage: ClassVar[Stage] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"logits": "probability", "regression": "sides"}

    def __call__(self, pair: Pair) -> Pair:
        return pair.map(torch.sigmoid, kind=self.kinds[pair.kind])


@TRANSFORMS.register("pow2")
@piece
class Square(Transform):
    """x^2 of every number: logits stay scores, regression becomes the sides of a box.

    Shapes:  any -> the same
    Source:  DetKDS, table 2.
    """

    stage: ClassVar[Stage] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"logits": "logits", "regression": "sides"}

    def __call__(self, pair: Pair) -> Pair:
        return pair.map(torch.square, kind=self.kinds[pair.kind])
