"""Where two detectors disagree the most: objects that need no ground truth."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detkds.alignment import response_mismatch
from detkds.knowledge.responses import REGION, probabilities, response_levels, valid_positions
from detkds.structures import DetectorInfo, KnowledgeInput

_OVERLAP, _COUNT = 0.3, 10


@torch.no_grad()
def general_instances(inputs: KnowledgeInput) -> list[Tensor]:
    """Per image up to ten boxes ``(R_i, 4)`` xyxy pixels, the largest disagreement first.

    A position's disagreement is the largest difference of its class probabilities, and its box is that of the detector
    that gives this class more. A box that overlaps a better one by an IoU above 0.3 is left out.

    Args:
        inputs: aligned outputs of dense or region heads.

    Source: GID (Dai et al., CVPR 2021), section 3.
    """
    collect = _of_regions if inputs.student.layout.kind == "region" else _of_cells
    return _best(*collect(inputs))


def general_refusal(student: DetectorInfo, teacher: DetectorInfo) -> str | None:
    """Why a pair has no general instances; None where it has."""
    kinds = student.layout.kind, teacher.layout.kind
    if not set(kinds) <= {"dense", "region"} or "none" in (student.layout.regression, teacher.layout.regression):
        return "general instances need the boxes of dense or region heads; student {}, teacher {}".format(*kinds)
    return response_mismatch(student, teacher)


def _of_cells(inputs: KnowledgeInput) -> tuple[Tensor, Tensor]:
    """Disagreement ``(N, M)``, -inf on padding, and boxes ``(N, M, 4)`` of all anchors."""
    student, teacher = inputs.student, inputs.teacher
    scores, boxes = [], []
    for level, stride in response_levels(inputs).items():
        ours, theirs = (probabilities(side, level) for side in (student, teacher))
        score, label = (theirs - ours).abs().max(1, keepdim=True)
        believed = (theirs.gather(1, label) > ours.gather(1, label)).expand(-1, 4, -1, -1, -1)
        valid = valid_positions(student, ours, stride)
        if valid is not None:
            score = score.masked_fill(valid == 0, -torch.inf)
        scores.append(score.flatten(1))
        boxes.append(torch.where(believed, teacher.boxes[level], student.boxes[level]).flatten(2).transpose(1, 2))
    return torch.cat(scores, 1), torch.cat(boxes, 1)


def _of_regions(inputs: KnowledgeInput) -> tuple[Tensor, Tensor]:
    """The same of all proposals; images with fewer than the most are filled up with -inf."""
    student, teacher = inputs.student, inputs.teacher
    assert student.proposals is not None
    ours, theirs = (probabilities(side, REGION) for side in (student, teacher))
    score, label = (theirs - ours).abs().max(1, keepdim=True)
    believed = theirs.gather(1, label) > ours.gather(1, label)
    column = (label + 1)[:, None].expand(-1, 4, -1)  # column 0 is the background
    theirs, ours = (side.boxes[REGION].gather(2, column).squeeze(2) for side in (teacher, student))
    counts = [len(one) for one in student.proposals]
    scores = pad_sequence(list(score.squeeze(1).split(counts)), batch_first=True, padding_value=-torch.inf)
    return scores, pad_sequence(list(torch.where(believed, theirs, ours).split(counts)), batch_first=True)


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
    return [one[kept] for one, kept in zip(torch.stack(chosen, 1), torch.stack(exists, 1), strict=True)]


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    inner = (torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])).clamp_min(
        0
    )
    areas = [(one[..., 2:] - one[..., :2]).clamp_min(0).prod(-1) for one in (boxes, others)]
    shared = inner.prod(-1)
    return shared / (areas[0] + areas[1] - shared).clamp_min(torch.finfo(shared.dtype).tiny)
