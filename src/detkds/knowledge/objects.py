"""What the queries of two detectors say of one and the same object: joined through the ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from detkds.alignment import response_mismatch
from detkds.arguments import NonNegative, piece
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, DetectorOutput, Kind, KnowledgeInput, Pair

_QUERY = "query"
_CLASS_COST, _L1_COST, _GIOU_COST = 2.0, 5.0, 2.0
_ALPHA, _GAMMA = 0.25, 2.0


@KNOWLEDGE.register("object_logits")
@piece
class ObjectLogits(Knowledge):
    """The score of an object's class by the query of each detector that answers for the object: ``(R, 1)``.

    Both detectors match their queries to the objects of the ground truth, each for itself, so that two queries meet
    that speak of the same object however differently they predict. The cost of a match is 2 times the focal
    cost of the class (alpha 0.25, gamma 2) + 5 times the l1 distance of the boxes in fractions of the image + 2 times
    their GIoU loss.

    Args:
        least_iou: objects that the teacher's box overlaps by less are left out.

    Degenerate: a batch without objects gives empty pairs, whose loss is 0. Of detectors with unequally many queries,
        those without one alike on the other side are not among the candidates.
    Source: D-FINE (Peng et al., ICLR 2025), whose costs these are, for the distillation of AutoVision (2026).
    """

    yields: ClassVar[Kind] = "logits"

    least_iou: NonNegative = 0.5

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        objects = _Objects.match(inputs, self.least_iou)
        scores = (
            side.logits[_QUERY][rows].gather(1, objects.labels[:, None])
            for side, rows in ((inputs.student, objects.student), (inputs.teacher, objects.teacher))
        )
        yield Pair(*scores, kind="logits")

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        return _refusal(student, teacher)


@KNOWLEDGE.register("object_localization")
@piece
class ObjectLocalization(Knowledge):
    """The box of an object by the queries that ``object_logits`` joins: regression numbers ``(R, 4)``.

    The decoded boxes travel along for the transform ``decode``, and the distributions of the sides for ``edges``.

    Args:
        weights: ``none``, all objects alike, or ``iou``, by the IoU of the student's box with the object's.
        least_iou: see ``object_logits``.

    Source: as ``object_logits``.
    """

    yields: ClassVar[Kind] = "regression"

    weights: Literal["none", "iou"] = "none"
    least_iou: NonNegative = 0.5

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        student, teacher = inputs.student, inputs.teacher
        objects = _Objects.match(inputs, self.least_iou)

        def both(name: str) -> tuple[Tensor, Tensor]:
            return getattr(student, name)[_QUERY][objects.student], getattr(teacher, name)[_QUERY][objects.teacher]

        weight = None
        if self.weights == "iou":
            boxes = student.boxes[_QUERY][objects.student].detach()
            weight = box_iou(boxes, objects.boxes).diagonal()[:, None].to(boxes)
        distributed = student.layout.bins_mismatch(teacher.layout) is None
        yield Pair(
            *both("regression"),
            kind="regression",
            weight=weight,
            divisor=float(max(1, len(objects.boxes))),
            decoded=both("boxes"),
            distributions=both("box_distribution") if distributed else None,
        )

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        return _refusal(student, teacher, boxes=True)


def _refusal(student: DetectorInfo, teacher: DetectorInfo, *, boxes: bool = False) -> str | None:
    if (student.layout.kind, teacher.layout.kind) != ("query", "query"):
        kinds = student.layout.kind, teacher.layout.kind
        return "objects are joined between the queries of two detectors; student {}, teacher {}".format(*kinds)
    if student.layout.activation != "sigmoid":
        return f"objects are joined by one score for each class, not by {student.layout.activation}"
    return response_mismatch(student, teacher, boxes=boxes)


@dataclass(frozen=True)
class _Objects:
    """The objects that the teacher knows: labels ``(R,)``, boxes ``(R, 4)`` and the rows of both detectors' queries."""

    labels: Tensor
    boxes: Tensor
    student: Tensor
    teacher: Tensor

    @classmethod
    @torch.no_grad()
    def match(cls, inputs: KnowledgeInput, least_iou: float) -> _Objects:
        boxes = inputs.boxes("object_logits")
        targets = inputs.targets or ()
        labels = [target["labels"] for target in targets]
        rows = [_rows(side, labels, boxes) for side in (inputs.student, inputs.teacher)]
        every, wanted = torch.cat(labels), torch.cat(boxes)
        overlap = box_iou(inputs.teacher.boxes[_QUERY][rows[1]].to(wanted), wanted).diagonal()
        known = (overlap >= least_iou) & (rows[0] >= 0) & (rows[1] >= 0)
        return cls(every[known], wanted[known], rows[0][known], rows[1][known])


def _rows(side: DetectorOutput, labels: list[Tensor], boxes: list[Tensor]) -> Tensor:
    """The row of the query that answers for each object, of all images in order; -1 where there are too few."""
    count = len(side.logits[_QUERY]) // max(1, len(boxes))  # the queries of an image, which are as many in each
    rows = []
    for image, (label, box) in enumerate(zip(labels, boxes, strict=True)):
        own = slice(image * count, (image + 1) * count)
        height, width = side.image_sizes[image].tolist()
        size = box.new_tensor([width, height, width, height])
        cost = _costs(side.logits[_QUERY][own].to(box), side.boxes[_QUERY][own].to(box) / size, label, box / size)
        queries, objects = linear_sum_assignment(cost.nan_to_num(1e6, 1e6, -1e6).cpu().numpy())
        answering = torch.full((len(box),), -1, dtype=torch.int64)
        answering[torch.from_numpy(objects)] = torch.from_numpy(queries) + own.start
        rows.append(answering.to(box.device))
    return torch.cat(rows)


def _costs(logits: Tensor, boxes: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """``(Q, R)`` of queries and objects, boxes in fractions of the image."""
    score = torch.sigmoid(logits)[:, labels]
    positive = _ALPHA * (1 - score).pow(_GAMMA) * -(score + 1e-8).log()
    negative = (1 - _ALPHA) * score.pow(_GAMMA) * -(1 - score + 1e-8).log()
    distance = torch.cdist(_centred(boxes), _centred(wanted), p=1)
    overlap = generalized_box_iou(boxes, wanted)
    return _CLASS_COST * (positive - negative) + _L1_COST * distance + _GIOU_COST * (1 - overlap)


def _centred(boxes: Tensor) -> Tensor:
    return torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
