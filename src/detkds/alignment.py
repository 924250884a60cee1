"""Which level, class column and row of the teacher answers to which of the student's.

Levels answer to each other by stride, classes by name, the rows of a dense head by cell and anchor, those of a region
head by proposal. Object queries have no order: they are matched by what they predict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid
from torchvision.ops import box_convert, generalized_box_iou

from detkds.structures import Branch, Branches, DetectorInfo, DetectorOutput

RESPONSES = ("logits", "regression", "boxes", "box_distribution")
"""The fields of an output that hold a head's responses."""

_CLASS_COST, _L1_COST, _GIOU_COST = 1.0, 5.0, 2.0


@dataclass(frozen=True)
class LevelMatch:
    """A level of the student and the teacher's that it imitates.

    Attributes:
        student, teacher: the names of the levels.
        strides: pixels per cell, of the student's and of the teacher's; maps are compared at the teacher's.
        channels: of the student's and of the teacher's; where they differ the student's are adapted.
    """

    student: str
    teacher: str
    strides: tuple[float, float]
    channels: tuple[int, int]

    @property
    def resized(self) -> bool:
        """Whether the student's map is resized, because no level of the teacher has its stride."""
        return self.strides[0] != self.strides[1]

    @property
    def adapted(self) -> bool:
        """Whether a convolution adapts the student's channels."""
        return self.channels[0] != self.channels[1]


def match_levels(student: DetectorInfo, teacher: DetectorInfo) -> dict[str, LevelMatch]:
    """The student's levels with the teacher's of equal stride: the namesake, or else the first.

    Where not one stride agrees, levels within a factor of two are joined, the nearest first, each at most once.
    """
    pairs: list[tuple[str, str]] = []
    for name, spec in student.features.items():
        equal = [level for level, other in teacher.features.items() if other.stride == spec.stride]
        if equal:
            pairs.append((name, name if name in equal else equal[0]))
    if not pairs:
        pairs = _nearest_levels(student, teacher)
    matches = {}
    for name, teacher_name in pairs:
        own, wanted = student.features[name], teacher.features[teacher_name]
        matches[name] = LevelMatch(name, teacher_name, (own.stride, wanted.stride), (own.channels, wanted.channels))
    return matches


def _nearest_levels(student: DetectorInfo, teacher: DetectorInfo) -> list[tuple[str, str]]:
    def octaves(pair: tuple[str, str]) -> float:
        return abs(math.log2(student.features[pair[0]].stride / teacher.features[pair[1]].stride))

    chosen: dict[str, str] = {}
    for level, teacher_level in sorted(product(student.features, teacher.features), key=octaves):
        if octaves((level, teacher_level)) <= 1 and level not in chosen and teacher_level not in chosen.values():
            chosen[level] = teacher_level
    return [(level, chosen[level]) for level in student.features if level in chosen]


def response_mismatch(student: DetectorInfo, teacher: DetectorInfo, *, boxes: bool = False) -> str | None:
    """Why the responses of two detectors cannot be compared row by row; None where they can."""
    if (reason := student.layout.mismatch(teacher.layout, boxes=boxes)) is not None:
        return reason
    if student.layout.kind == "dense" and all(match.resized for match in match_levels(student, teacher).values()):
        return "no level of equal stride, so that their cells do not answer to each other"
    return None


def align_responses(
    student: DetectorOutput, teacher: DetectorOutput, levels: Mapping[str, str]
) -> tuple[DetectorOutput, DetectorOutput]:
    """Both outputs with responses of equal shape, row by row about the same thing, the teacher's without gradient.

    Args:
        student, teacher: outputs with their layouts, between which there is no :func:`response_mismatch`.
        levels: the student's level names mapped to the teacher's, for dense heads.

    Returns:
        Outputs whose responses are, as they came, ``{level: (N, K, A, H, W)}`` under the student's names for dense
        heads and ``{"roi": (R, K+1)}`` for region heads, where the teacher is asked about the student's proposals. Of
        query heads, ``{"query": (R, K)}``: the queries that were matched, of all images in order.

    Raises:
        ValueError: region responses without the student's proposals or the teacher's ``respond_at``.
    """
    kind = student.layout.kind
    if kind == "region":
        given = _responses_at(student, teacher)
    else:
        names = levels if kind == "dense" else {key: key for key in teacher.logits}
        given = {
            field: {level: values[teacher_level] for level, teacher_level in names.items() if teacher_level in values}
            for field in RESPONSES
            if (values := getattr(teacher, field)) is not None
        }
    teacher = replace(teacher, **{name: _each(values, Tensor.detach) for name, values in given.items()})
    columns = student.layout.columns(teacher.layout)
    if columns is not None:
        teacher = _select_classes(teacher, columns)
    if teacher.branches is not None:
        teacher = replace(teacher, branches=_AlignedBranches(teacher.branches, levels, columns))
    return _matched_queries(student, teacher) if kind == "query" else (student, teacher)


@dataclass(frozen=True)
class _AlignedBranches:
    """A teacher's branches under the student's names of levels, with the student's classes."""

    branches: Branches
    levels: Mapping[str, str]
    columns: list[int] | None

    def before(self, branch: Branch, after: int) -> dict[str, Tensor]:
        return self._renamed(self.branches.before(branch, after))

    def finish(self, branch: Branch, after: int, maps: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        own_maps = {self.levels[level]: tensor for level, tensor in maps.items()}
        responses = {
            name: self._renamed(values) for name, values in self.branches.finish(branch, after, own_maps).items()
        }
        if self.columns is not None and "logits" in responses:
            responses["logits"] = _each(responses["logits"], lambda tensor: tensor[:, self.columns])
        return responses

    def _renamed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {level: values[own_level] for level, own_level in self.levels.items() if own_level in values}


def _responses_at(student: DetectorOutput, teacher: DetectorOutput) -> dict[str, dict[str, Tensor]]:
    if student.proposals is None or teacher.respond_at is None:
        raise ValueError(
            "region responses need the student's proposals (a pass in training mode gives them) and a teacher's "
            "output that has respond_at"
        )
    with torch.no_grad():
        response = teacher.respond_at([proposals.detach() for proposals in student.proposals])
    return {name: {"roi": getattr(response, name)} for name in ("logits", "regression", "boxes")}


def _select_classes(output: DetectorOutput, columns: list[int]) -> DetectorOutput:
    """The output with some of the classes; a region head's boxes are one per class too."""

    def pick(axis: int) -> Any:
        return lambda tensor: tensor.index_select(axis, torch.tensor(columns, device=tensor.device))

    changes = {"logits": _each(output.logits, pick(1))}
    if output.layout.kind == "region":
        changes |= {name: _each(getattr(output, name), pick(2)) for name in ("regression", "boxes")}
    return replace(output, **changes)


def _matched_queries(student: DetectorOutput, teacher: DetectorOutput) -> tuple[DetectorOutput, DetectorOutput]:
    """Both outputs with the rows of the queries that predict the most alike, each used once."""
    images, student_queries, teacher_queries = match_queries(student, teacher)

    def rows(output: DetectorOutput, queries: Tensor) -> DetectorOutput:
        return replace(
            output,
            **{
                name: _each(getattr(output, name), lambda tensor: tensor.movedim(-1, 1)[images, queries])
                for name in RESPONSES
            },
        )

    return rows(student, student_queries), rows(teacher, teacher_queries)


@torch.no_grad()
def match_queries(student: DetectorOutput, teacher: DetectorOutput) -> tuple[Tensor, Tensor, Tensor]:
    """The assignment of the student's queries to the teacher's of least cost, min(Q, Q') of every image.

    The cost of a pair is the cross-entropy of its classes, summed over them, + 5 times the l1 distance of its boxes
    ``(cx, cy, w, h)`` in fractions of the image + 2 times their GIoU loss.

    Returns:
        ``(R,)`` each: image, student's query, teacher's query.

    Source: DETRDistill (Chang et al., ICCV 2023), section 3.2, whose weights these are.
    """
    cost = _query_costs(student, teacher).cpu().numpy()
    matches = [
        (image, row, column)
        for image, costs in enumerate(cost)
        for row, column in zip(*map(np.ndarray.tolist, linear_sum_assignment(costs)), strict=True)
    ]
    images, student_queries, teacher_queries = (
        torch.tensor(matches, dtype=torch.int64, device=student.logits["query"].device).view(-1, 3).unbind(1)
    )
    return images, student_queries, teacher_queries


def _query_costs(student: DetectorOutput, teacher: DetectorOutput) -> Tensor:
    """``(N, Q, Q')``."""
    logits, teacher_logits = (output.logits["query"].float().transpose(1, 2) for output in (student, teacher))
    if student.layout.activation == "softmax":
        classes = -log_softmax(logits, 2) @ torch.softmax(teacher_logits, 2).transpose(1, 2)
    else:
        wanted = torch.sigmoid(teacher_logits).transpose(1, 2)
        classes = -(logsigmoid(logits) @ wanted + logsigmoid(-logits) @ (1 - wanted))
    scale = student.image_sizes.to(logits).flip(1).repeat(1, 2)[:, None]  # (N, 1, 4): width, height, width, height
    boxes = [output.boxes["query"].float().transpose(1, 2) / scale for output in (student, teacher)]
    l1 = torch.cdist(*(box_convert(corners, "xyxy", "cxcywh") for corners in boxes), p=1)
    giou = torch.stack([generalized_box_iou(*pair) for pair in zip(*boxes, strict=True)])
    cost = _CLASS_COST * classes + _L1_COST * l1 + _GIOU_COST * (1 - giou)
    return torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)  # a diverging student is reported by its losses


def _each(values: Mapping[str, Tensor], function: Any) -> dict[str, Tensor]:
    return {name: function(tensor) for name, tensor in values.items()}
