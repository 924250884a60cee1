"""What each position of the responses counts, and what a sum over them is divided by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from detkds.knowledge.general_instances import general_instances, general_refusal
from detkds.knowledge.responses import REGION, confidence, probabilities, response_levels, valid_positions
from detkds.structures import DetectorInfo, DetectorOutput, KnowledgeInput

Weights = Literal[
    "valid", "cells", "confidence", "peak", "difference", "positive", "negative", "general", "main", "vlr"
]
"""What a position counts.

``valid``: all alike, but those on padding, which count 0 with every other choice but ``cells`` too; ``cells``: all of a
dense head alike; ``confidence``: by the teacher's largest probability; ``peak``: by the largest of all anchors of the
cell; ``difference``: by the largest difference between the two probabilities of a class; ``positive``: only anchors (or
proposals) that the student's own losses take for an object; ``negative``: only those they take for background;
``general``: only those they would take for one of the general instances
(:func:`~detkds.knowledge.general_instances.general_instances`); ``main``: positives, by the student's largest
probability; ``vlr``: the anchors around, by their IoU with the object. No gradient flows through any of them.
"""

Per = Literal["weight", "cell", "positive", "batch"]
"""What the weighted sum is divided by: the sum of the weights (as the distance states); the same with one weight for
each cell, the mean of its anchors'; the number of the student's positives, at least 1 for each image; or nothing."""

_REGIONS = {"positive": "main", "negative": "background", "general": "main", "main": "main", "vlr": "vlr"}


def weighting_refusal(weights: Weights, per: Per, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
    """Why the positions of a pair cannot be weighted like this; None where they can."""
    if weights == "cells" and student.layout.kind != "dense":
        return f"weights=cells is for the cells of a dense head, not for a {student.layout.kind} head"
    for argument, region in ((f"weights={weights}", _REGIONS.get(weights)), (f"per={per}", _REGIONS.get(per))):
        if region is not None and region not in student.regions:
            marked = ", ".join(student.regions) or "none"
            return f"{argument} needs a student that marks the region {region} of its anchors; this one marks {marked}"
    return general_refusal(student, teacher) if weights == "general" else None


@torch.no_grad()
def position_weights(
    weights: Weights, per: Per, inputs: KnowledgeInput
) -> Iterator[tuple[str, Tensor | None, Tensor | float | None]]:
    """Level, weights ``(N, 1, A, H, W)`` or ``(R, 1)`` of rows, and what their sums are divided by.

    The weights are None where all positions count alike, the divisor where it is the sum of the weights.

    Raises:
        ValueError: a region is needed, and the student's output marks none: it had no targets.
    """
    student, teacher = inputs.student, inputs.teacher
    region = None
    if weights in _REGIONS:
        boxes = general_instances(inputs) if weights == "general" else None
        region = _region(student, _REGIONS[weights], boxes)
    positives = _positives(student) if per == "positive" else None
    for level, stride in response_levels(inputs).items():
        weight = valid = None if weights == "cells" else valid_positions(student, student.logits[level], stride)
        if weights not in ("cells", "valid"):
            weight = _importance(weights, student, teacher, level) if region is None else region[level]
            if weights == "main":
                weight = weight * confidence(student, level)
            weight = weight if valid is None else weight * valid
        yield level, weight, positives if per == "positive" else _divisor(per, student.logits[level], weight)


def _importance(weights: Weights, student: DetectorOutput, teacher: DetectorOutput, level: str) -> Tensor:
    """What a position counts by the two class scores there."""
    if weights == "difference":
        apart = probabilities(student, level) - probabilities(teacher, level)
        return apart.abs().amax(1, keepdim=True)
    weight = confidence(teacher, level)
    return weight.amax(2, keepdim=True).expand_as(weight) if weights == "peak" and weight.ndim > 2 else weight


def _divisor(per: Per, logits: Tensor, weight: Tensor | None) -> Tensor | float | None:
    if per == "batch":
        return 1.0
    if per == "weight" or logits.ndim == 2:
        return None
    total = logits[:, 0].numel() if weight is None else weight.sum()
    share = total / logits.shape[2]
    return share + (share == 0)


def _positives(student: DetectorOutput) -> Tensor:
    """The number of the student's positives, of which an image has one at least."""
    marked = _region(student, "main", None)
    if REGION in marked and student.proposals is not None:
        images = marked[REGION].split([len(one) for one in student.proposals])
        return torch.stack([one.sum() for one in images]).clamp_min(1).sum()
    return torch.stack([one.flatten(1).sum(1) for one in marked.values()]).sum(0).clamp_min(1).sum()


def _region(student: DetectorOutput, name: str, boxes: Sequence[Tensor] | None) -> Mapping[str, Tensor]:
    if student.region is None:
        raise ValueError(f"the student's output marks no region {name}; a pass in training mode with targets does")
    return student.region(name, boxes)
