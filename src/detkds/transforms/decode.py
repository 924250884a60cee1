"""Regression as boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from detkds.arguments import piece
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair


@TRANSFORMS.register("decode")
@piece
class Decode(Transform):
    """Put the boxes that both detectors decode at the same anchors, xyxy in pixels, in place of their numbers.

    Shapes:  (N, 4, A, H, W) or (R, 4) -> the same
    Source:  CrossKD (Wang et al., CVPR 2024), section 3.3, compares decoded boxes.

    Raises:
        ValueError: the pair carries no decoded boxes.
    """

    stage: ClassVar[Stage] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"regression": "boxes"}

    def __call__(self, pair: Pair) -> Pair:
        if pair.decoded is None:
            raise ValueError("decode: expected a pair that carries decoded boxes, got decoded=None")
        student, teacher = pair.decoded
        return replace(pair, student=student, teacher=teacher, decoded=None, kind=self.kinds[pair.kind])
