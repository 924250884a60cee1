"""Where two detectors disagree the most: objects that need no ground truth."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detkds.alignment import response_mismatch
from detkds.knowledge.responses import REGION, confidence, probabilities, response_levels
from detkds.structures import DetectorInfo, DetectorOutput, KnowledgeInput

_OVERLAP, _COUNT, _LEAST_SIDE = 0.3, 10, 10


@torch.no_grad()
def general_instances(inputs: KnowledgeInput) -> list[Tensor]:
    """Per image up to ten boxes ``(R_i, 4)`` xyxy pixels, the largest disagreement first.

    A position's disagreement is the difference of the two detectors' largest class probabilities, and its box is that
    of the detector of the larger one, clipped to the image. A box that overlaps a better one by an IoU above 0.3 is
    left out, and so is one of a width or height of 10 pixels or less.

    Args:
        inputs: aligned outputs of dense or region heads.

    Source: GID (Dai et al., CVPR 2021), section 3.1, as in the authors' code.
    Differs: the paper takes the class of the largest difference; the code looks at the 3000 best positions alone.
    """
    collect = _of_regions if inputs.student.layout.kind == "region" else _of_cells
    scores, boxes = collect(inputs)
    limits = inputs.student.image_sizes.flip(1).repeat(1, 2)[:, None].to(boxes)
    boxes = torch.minimum(boxes.clamp_min(0), limits)
    large = ((boxes[..., 2:] - boxes[..., :2]) > _LEAST_SIDE).all(-1)
    return _best(scores.masked_fill(~large, -torch.inf), boxes)


def general_refusal(student: DetectorInfo, teacher: DetectorInfo) -> str | None:
    """Why a pair has no general instances; None where it has."""
    kinds = student.layout.kind, teacher.layout.kind
    if not set(kinds) <= {"dense", "region"} or "none" in (student.layout.regression, teacher.layout.regression):
        return "general instances need the boxes of dense or region heads; student {}, teacher {}".format(*kinds)
    return response_mismatch(student, teacher)


def _of_cells(inputs: KnowledgeInput) -> tuple[Tensor, Tensor]:
    """Disagreement ``(N, M)`` and boxes ``(N, M, 4)`` of all anchors."""
    student, teacher = inputs.student, inputs.teacher
    scores, boxes = [], []
    for level in response_levels(inputs):
        difference = confidence(teacher, level) - confidence(student, level)
        scores.append(difference.abs().flatten(1))
        believed = torch.where(difference > 0, teacher.boxes[level], student.boxes[level])
        boxes.append(believed.flatten(2).transpose(1, 2))
    return torch.cat(scores, 1), torch.cat(boxes, 1)


def _of_regions(inputs: KnowledgeInput) -> tuple[Tensor, Tensor]:
    """The same of all proposals; images with fewer than the most are filled up with -inf."""
    student, teacher = inputs.student, inputs.teacher
    assert student.proposals is not None
    scores, boxes = zip(*(_likeliest(side) for side in (student, teacher)), strict=True)
    difference = scores[1] - scores[0]
    counts = [len(image_proposals) for image_proposals in student.proposals]
    disagreement = difference.abs().squeeze(1).split(counts)
    believed = torch.where(difference > 0, boxes[1], boxes[0]).split(counts)
    padded = pad_sequence(list(disagreement), batch_first=True, padding_value=-torch.inf)
    return padded, pad_sequence(list(believed), batch_first=True)


def _likeliest(side: DetectorOutput) -> tuple[Tensor, Tensor]:
    """The largest class probability ``(R, 1)`` of a region head's rows, and the box ``(R, 4)`` of that class."""
    score, label = probabilities(side, REGION).max(1, keepdim=True)
    column = (label + 1)[:, None].expand(-1, 4, -1)  # column 0 is the background
    return score, side.boxes[REGION].gather(2, column).squeeze(2)


def _best(scores: Tensor, boxes: Tensor) -> list[Tensor]:
    """Suppression in all images at once: ten times the best that is left, without what overlaps it."""
    images = torch.arange(len(scores), device=scores.device)
    chosen, exists = [], []
    for _ in range(min(_COUNT, scores.shape[1])):
        score, index = scores.max(1)
        box = boxes[images, index]
        chosen.append(box)
        exists.append(score > -torch.inf)
        scores = scores.masked_fill(_iou(boxes, box[:, None]) > _OVERLAP, -torch.inf)
        scores[images, index] = -torch.inf
    if not chosen:
        return [boxes.new_zeros(0, 4) for _ in scores]
    return [image_boxes[kept] for image_boxes, kept in zip(torch.stack(chosen, 1), torch.stack(exists, 1), strict=True)]


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    inner = (torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])).clamp_min(
        0
    )
    areas = [(rows[..., 2:] - rows[..., :2]).clamp_min(0).prod(-1) for rows in (boxes, others)]
    shared = inner.prod(-1)
    return shared / (areas[0] + areas[1] - shared).clamp_min(torch.finfo(shared.dtype).tiny)
