"""Class scores of the head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from detkds.alignment import response_mismatch
from detkds.arguments import piece
from detkds.knowledge.weighting import Per, Positions, Weighting, Weights
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, Kind, KnowledgeInput, Pair


@KNOWLEDGE.register("logits")
@piece
class Logits(Knowledge):
    """Raw class logits: ``(N, K, A, H, W)`` per level of a dense head, ``(R, K+1)`` of a region or query head.

    A region teacher is asked about the student's own proposals, so that both speak of the same regions. Matched object
    queries, most of which see background, count by the teacher's confidence where no other weights are asked for.

    Args:
        weights: what a position counts; see :data:`detkds.knowledge.weighting.Weights`.
        per: what the weighted sum is divided by; see :data:`detkds.knowledge.weighting.Per`.
        positions: which positions take part; see :data:`detkds.knowledge.weighting.Positions`.
        scores: the kind of scores that the policy is for; heads of the other kind are refused.

    Source: DetKDS section 3.1; shared proposals as in DIST and MasKD (Huang et al., 2022, 2023); the weights of queries
        as in KD-DETR (Wang et al., CVPR 2024).
    Differs: the released code applies a sigmoid first, and takes objectness maps for two-stage detectors.
    """

    yields: ClassVar[Kind] = "logits"

    weights: Weights = "valid"
    per: Per = "weight"
    scores: Literal["any", "sigmoid", "softmax"] = "any"
    positions: Positions = "valid"

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        student, teacher = inputs.student, inputs.teacher
        weights = "confidence" if (student.layout.kind, self.weights) == ("query", "valid") else self.weights
        for level, weight, divisor in Weighting(weights, self.per, self.positions).of_levels(inputs):
            ours, theirs = student.logits[level].contiguous(), teacher.logits[level].contiguous()
            yield Pair(ours, theirs, kind="logits", weight=weight, divisor=divisor)

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        if (reason := response_mismatch(student, teacher)) is not None:
            return reason
        if self.scores not in ("any", student.layout.activation):
            return f"scores={self.scores} is for heads of such scores, not for {student.layout.activation}"
        return Weighting(self.weights, self.per, self.positions).refusal(student, teacher)
