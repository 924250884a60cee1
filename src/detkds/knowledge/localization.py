"""Boxes predicted by the head."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from detkds.alignment import response_mismatch
from detkds.knowledge.responses import REGION, confidence, response_levels, valid_positions
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, DetectorOutput, Kind, Pair, Target


@KNOWLEDGE.register("localization")
@dataclass(frozen=True)
class Localization:
    """The regression numbers of each position: ``(N, 4, A, H, W)`` per level, ``(R, 4)`` of a region or query head.

    A position counts by the teacher's confidence there, max over classes; padding counts 0. A class-wise region head
    is read at the class the teacher finds likeliest. The decoded boxes travel along for the transform ``decode``.

    Source: DetKDS section 3.1 and Table 2; weights as in CrossKD (Wang et al., 2024). The paper gives no formula for
        transform and distance together; here transformed numbers are distances to the four sides of a box, so that
        every distance of the IoU family is defined.
    """

    name: ClassVar[str]
    yields: ClassVar[Kind] = "regression"

    def __call__(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Target] | None,
        levels: Mapping[str, float],
    ) -> Iterator[Pair]:
        for level, stride in response_levels(student, levels).items():
            read = _reader(teacher, level)
            # A head's rows come as a permuted view, over which all that follows would be slow.
            ours, theirs = (read(side.regression[level]).contiguous() for side in (student, teacher))
            weight = confidence(teacher, level).detach()
            valid = valid_positions(student, ours, stride)
            yield Pair(
                ours,
                theirs,
                kind="regression",
                weight=weight if valid is None else weight * valid,
                decoded=(read(student.boxes[level]), read(teacher.boxes[level])),
            )

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        if "none" in (student.layout.regression, teacher.layout.regression):
            return "one of the detectors offers no box regression"
        return response_mismatch(student, teacher, boxes=True)


def _reader(teacher: DetectorOutput, level: str) -> Callable[[Tensor], Tensor]:
    """How to read regression numbers: as they are, or ``(R, 4, K+1)`` at the teacher's likeliest foreground class."""
    if level != REGION:
        return lambda tensor: tensor
    label = teacher.logits[level][:, 1:].argmax(1) + 1
    return lambda tensor: tensor.gather(2, label[:, None, None].expand(-1, 4, 1)).squeeze(2)
