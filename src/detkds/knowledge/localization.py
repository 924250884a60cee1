"""Boxes predicted by the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar

from torch import Tensor

from detkds.alignment import response_mismatch
from detkds.arguments import piece
from detkds.knowledge.responses import REGION
from detkds.knowledge.weighting import Per, Positions, Weighting, Weights
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, DetectorOutput, Kind, KnowledgeInput, Pair


@KNOWLEDGE.register("localization")
@piece
class Localization(Knowledge):
    """The regression numbers of each position: ``(N, 4, A, H, W)`` per level, ``(R, 4)`` of a region or query head.

    A class-wise region head is read at the class the teacher finds likeliest. The decoded boxes travel along for the
    transform ``decode`` and, where both detectors predict them over the same bins, the distributions of the sides for
    ``edges``.

    Args:
        weights: what a position counts; see :data:`detkds.knowledge.weighting.Weights`.
        per: what the weighted sum is divided by; see :data:`detkds.knowledge.weighting.Per`.
        positions: which positions take part; see :data:`detkds.knowledge.weighting.Positions`.
        bins: whether to refuse detectors without distributions over the same bins.

    Source: DetKDS section 3.1 and Table 2; weights as in CrossKD (Wang et al., 2024). The paper gives no formula for
        transform and distance together; here transformed numbers are distances to the four sides of a box, so that
        every distance of the IoU family is defined.
    """

    yields: ClassVar[Kind] = "regression"

    weights: Weights = "confidence"
    per: Per = "weight"
    bins: bool = False
    positions: Positions = "valid"

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        student, teacher = inputs.student, inputs.teacher
        distributed = student.layout.bins_mismatch(teacher.layout) is None
        for level, weight, divisor in Weighting(self.weights, self.per, self.positions).of_levels(inputs):
            read = _reader(teacher, level)
            # A head's rows come as a permuted view, over which all that follows would be slow.
            ours, theirs = (read(side.regression[level]).contiguous() for side in (student, teacher))
            yield Pair(
                ours,
                theirs,
                kind="regression",
                weight=weight,
                divisor=divisor,
                decoded=(read(student.boxes[level]), read(teacher.boxes[level])),
                distributions=(
                    (student.box_distribution[level], teacher.box_distribution[level]) if distributed else None
                ),
            )

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        if "none" in (student.layout.regression, teacher.layout.regression):
            return "one of the detectors offers no box regression"
        if (reason := response_mismatch(student, teacher, boxes=True)) is not None:
            return reason
        if self.bins and (reason := student.layout.bins_mismatch(teacher.layout)) is not None:
            return reason
        return Weighting(self.weights, self.per, self.positions).refusal(student, teacher)


def _reader(teacher: DetectorOutput, level: str) -> Callable[[Tensor], Tensor]:
    """How to read regression numbers: as they are, or ``(R, 4, K+1)`` at the teacher's likeliest foreground class."""
    if level != REGION:
        return lambda tensor: tensor
    label = teacher.logits[level][:, 1:].argmax(1) + 1
    return lambda tensor: tensor.gather(2, label[:, None, None].expand(-1, 4, 1)).squeeze(2)
