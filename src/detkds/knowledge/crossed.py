"""What the teacher's head makes of the student's maps: crossed heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from detkds.arguments import Count, piece
from detkds.knowledge.localization import Localization
from detkds.knowledge.logits import Logits
from detkds.knowledge.weighting import Per, Positions
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import Branch, DetectorInfo, Kind, KnowledgeInput, Pair


@KNOWLEDGE.register("crossed_logits")
@piece
class CrossedLogits(Knowledge):
    """As ``logits``, with the class scores that the teacher's head gives from halfway the student's.

    The student's map after some convolutions of its branch is standardised per channel, over batch and positions, to
    the mean and deviation of the teacher's there, activated, and finished by the rest of the teacher's branch. The
    teacher's weights are left alone; the gradient goes through them to the student.

    Args:
        after: convolutions of the student's own branch; the others are the teacher's.
        per: what the weighted sum is divided by; see :data:`detkds.knowledge.weighting.Per`.
        positions: which positions take part; see :data:`detkds.knowledge.weighting.Positions`.

    Source: CrossKD (Wang et al., CVPR 2024), section 3.2 and the standardisation of the authors' code; ``after`` is 3
        for RetinaNet, ATSS and GFL, and 2 for FCOS.
    """

    yields: ClassVar[Kind] = "logits"

    after: Count = 3
    per: Per = "weight"
    positions: Positions = "valid"

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        yield from self._plain(_crossed(inputs, "classification", self.after))

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        return _refusal(student, teacher, self.after) or self._plain.refusal(student, teacher)

    @property
    def _plain(self) -> Logits:
        return Logits(per=self.per, positions=self.positions)


@KNOWLEDGE.register("crossed_localization")
@piece
class CrossedLocalization(Knowledge):
    """As ``localization``, with the boxes that the teacher's head gives from halfway the student's.

    Args:
        after, per, positions: see ``crossed_logits``.
        bins: whether to refuse detectors without distributions over the same bins.

    Source: CrossKD (Wang et al., CVPR 2024), section 3.2.
    """

    yields: ClassVar[Kind] = "regression"

    after: Count = 3
    per: Per = "weight"
    bins: bool = False
    positions: Positions = "valid"

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        yield from self._plain(_crossed(inputs, "regression", self.after))

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        return _refusal(student, teacher, self.after) or self._plain.refusal(student, teacher)

    @property
    def _plain(self) -> Localization:
        return Localization(per=self.per, bins=self.bins, positions=self.positions)


def _crossed(inputs: KnowledgeInput, branch: Branch, after: int) -> KnowledgeInput:
    """The same inputs with the student's responses of one branch crossed."""
    student, teacher = inputs.student.branches, inputs.teacher.branches
    if student is None or teacher is None:
        raise ValueError("crossing heads needs the branches of both outputs; a pass with responses gives them")
    student_maps = student.before(branch, after)
    with torch.no_grad():
        teacher_maps = teacher.before(branch, after)
    maps = {
        level: _standardised(student_maps[level], teacher_maps[level])
        for level in inputs.levels
        if level in teacher_maps
    }
    return replace(inputs, student=replace(inputs.student, **teacher.finish(branch, after, maps)))


def _standardised(student: Tensor, teacher: Tensor) -> Tensor:
    """The student's map with the mean and deviation of each channel of the teacher's."""
    correction = min(1, student[:, 0].numel() - 1)
    deviation, mean = torch.std_mean(student, (0, 2, 3), keepdim=True, correction=correction)
    wanted, centre = torch.std_mean(teacher, (0, 2, 3), keepdim=True, correction=correction)
    return (student - mean) / (deviation + 1e-6) * wanted + centre


def _refusal(student: DetectorInfo, teacher: DetectorInfo, after: int) -> str | None:
    sides = {"student": student.branches, "teacher": teacher.branches}
    if without := [name for name, branches in sides.items() if branches is None]:
        return f"crossing heads needs dense heads of two branches; not so the {' and '.join(without)}'s"
    assert student.branches is not None and teacher.branches is not None
    channels = student.branches.channels, teacher.branches.channels
    if channels[0] != channels[1]:
        return "the heads are not equally wide: student {}, teacher {} channels".format(*channels)
    convs = student.branches.convs, teacher.branches.convs
    if min(convs) < after:
        return "the branches have not {} convolutions: student {}, teacher {}".format(after, *convs)
    return None
