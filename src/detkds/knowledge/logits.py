"""Class scores of the head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from detkds.alignment import response_mismatch
from detkds.knowledge.responses import confidence, response_levels, valid_positions
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, DetectorOutput, Kind, Pair, Target


@KNOWLEDGE.register("logits")
@dataclass(frozen=True)
class Logits:
    """Raw class logits: ``(N, K, A, H, W)`` per level of a dense head, ``(R, K+1)`` of a region or query head.

    Anchors on padding carry weight 0. A region teacher is asked about the student's own proposals, so that both speak
    of the same regions. Matched object queries, most of which see background, count by the teacher's confidence.

    Source: DetKDS section 3.1; shared proposals as in DIST and MasKD (Huang et al., 2022, 2023); the weights of queries
        as in KD-DETR (Wang et al., CVPR 2024).
    Differs: the released code applies a sigmoid first, and takes objectness maps for two-stage detectors.
    """

    name: ClassVar[str]
    yields: ClassVar[Kind] = "logits"

    def __call__(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Target] | None,
        levels: Mapping[str, float],
    ) -> Iterator[Pair]:
        for level, stride in response_levels(student, levels).items():
            ours, theirs = student.logits[level].contiguous(), teacher.logits[level].contiguous()
            if student.layout.kind == "query":
                weight: Tensor | None = confidence(teacher, level).detach()
            else:
                weight = valid_positions(student, ours, stride)
            yield Pair(ours, theirs, kind="logits", weight=weight)

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        return response_mismatch(student, teacher)
