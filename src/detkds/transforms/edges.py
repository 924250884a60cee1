"""Regression as distributions over the distance of each side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from detkds.arguments import piece
from detkds.errors import PairError
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import DetectorInfo, Kind, Pair


@TRANSFORMS.register("edges")
@piece
class Edges(Transform):
    """Put the logits that both detectors predict over the distance of each side in place of their numbers.

    One row for each of the four sides of a box, which share the weight of its position: ``kl`` after it is
    localization distillation.

    Shapes:  (N, 4, A, H, W) -> (N, bins, 4, A, H, W), (R, 4) -> (R, bins, 4)
    Source:  LD (Zheng et al., CVPR 2022).

    Raises:
        PairError: the detectors do not both predict distributions over the same bins.
    """

    stage: ClassVar[Stage] = "response"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"regression": "logits"}

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        """Why a pair has no such distributions; None where it has."""
        return student.layout.bins_mismatch(teacher.layout)

    def __call__(self, pair: Pair) -> Pair:
        if pair.distributions is None:
            raise PairError("edges: these detectors do not both predict sides as distributions over the same bins")
        student, teacher = (logits.movedim(2, 1).contiguous() for logits in pair.distributions)
        return replace(
            pair,
            student=student,
            teacher=teacher,
            weight=None if pair.weight is None else pair.weight.unsqueeze(2),
            divisor=None if pair.divisor is None else 4 * pair.divisor,
            decoded=None,
            distributions=None,
            kind=self.kinds[pair.kind],
        )
