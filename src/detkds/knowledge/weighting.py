"""What each position of the responses counts, and what a sum over them is divided by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detkds.knowledge.general_instances import general_instances, general_refusal
from detkds.knowledge.responses import REGION, confidence, probabilities, response_levels, valid_positions
from detkds.structures import DetectorInfo, DetectorOutput, KnowledgeInput

_LEAST_CENTERNESS = 1e-6

Weights = Literal[
    "valid", "cells", "confidence", "peak", "difference", "positive", "negative", "general", "main", "vlr"
]
"""What a position counts.

``valid``: all alike; ``cells``: all of a dense head alike, those on padding too whatever :data:`Positions` says;
``confidence``: by the teacher's largest probability; ``peak``: by the largest of all anchors of the cell;
``difference``: by the largest difference between the two probabilities of a class; ``positive``: only anchors (or
proposals) that the student's own losses take for an object; ``negative``: only those they take for background;
``general``: only those they would take for one of the general instances
(:func:`~detkds.knowledge.general_instances.general_instances`); ``main``: positives, by the student's largest
probability; ``vlr``: the anchors around, by their IoU with the object. No gradient flows through any of them.
"""

Per = Literal["weight", "pyramid", "cell", "positive", "centerness", "batch"]
"""What the weighted sum is divided by: ``weight``, the sum of the weights (as the distance states); ``pyramid``, that
of all levels together; ``cell``, as ``weight`` with one weight for each cell, the mean of its anchors'; ``positive``,
the number of the student's positives, at least 1 for each image; ``centerness``, the sum of the centerness that the
student's own losses want of their positives; ``batch``, nothing."""

Positions = Literal["valid", "all", "assigned", "positive_levels"]
"""Which positions take part: ``valid``, those that are not on padding; ``all``; ``assigned``, of the valid ones those
that the student's own losses take for an object or for background; ``positive_levels``, the valid ones of the levels
on which some image of the batch has a positive. Rows of regions and queries are all valid."""

_REGIONS = {"positive": "main", "negative": "background", "general": "main", "main": "main", "vlr": "vlr"}


@dataclass(frozen=True)
class Weighting:
    """The three choices above together."""

    weights: Weights = "valid"
    per: Per = "weight"
    positions: Positions = "valid"

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        """Why the positions of a pair cannot be weighted like this; None where they can."""
        if self.weights == "cells" and student.layout.kind != "dense":
            return f"weights=cells is for the cells of a dense head, not for a {student.layout.kind} head"
        for argument, region in self._needed():
            if region not in student.regions:
                marked = ", ".join(student.regions) or "none"
                return (
                    f"{argument} needs a student that marks the region {region} of its anchors; this one marks {marked}"
                )
        return general_refusal(student, teacher) if self.weights == "general" else None

    def _needed(self) -> Iterator[tuple[str, str]]:
        """The regions that the student has to mark, and for what."""
        if self.weights in _REGIONS:
            yield f"weights={self.weights}", _REGIONS[self.weights]
        if self.per in ("positive", "centerness"):
            yield f"per={self.per}", "main" if self.per == "positive" else "centerness"
        for region in {"assigned": ("main", "background"), "positive_levels": ("main",)}.get(self.positions, ()):
            yield f"positions={self.positions}", region

    @torch.no_grad()
    def of_levels(self, inputs: KnowledgeInput) -> Iterator[tuple[str, Tensor | None, Tensor | float | None]]:
        """Level, weights ``(N, 1, A, H, W)`` or ``(R, 1)`` of rows, and what their sums are divided by.

        The weights are None where all positions count alike, the divisor where it is the sum of the weights.

        Raises:
            ValueError: a region is needed, and the student's output marks none: it had no targets.
        """
        region = self._marked(inputs)
        weights = {
            level: self._weight(inputs, region, level, stride) for level, stride in response_levels(inputs).items()
        }
        total = self._total(inputs, weights)
        for level, weight in weights.items():
            yield level, weight, _cell_total(inputs.student.logits[level], weight) if self.per == "cell" else total

    def _marked(self, inputs: KnowledgeInput) -> Mapping[str, Tensor] | None:
        """The region that the weights are of; None where they are of none."""
        if self.weights not in _REGIONS:
            return None
        boxes = general_instances(inputs) if self.weights == "general" else None
        return _region(inputs.student, _REGIONS[self.weights], boxes)

    def _weight(
        self, inputs: KnowledgeInput, region: Mapping[str, Tensor] | None, level: str, stride: float
    ) -> Tensor | None:
        part = self._participation(inputs.student, level, stride)
        if self.weights in ("cells", "valid"):
            return part
        weight = self._importance(inputs, level) if region is None else region[level]
        if self.weights == "main":
            weight = weight * confidence(inputs.student, level)
        return weight if part is None else weight * part

    def _participation(self, student: DetectorOutput, level: str, stride: float) -> Tensor | None:
        """1 where a position takes part, 0 elsewhere; None where all do."""
        if self.positions == "all" or self.weights == "cells":
            return None
        valid = valid_positions(student, student.logits[level], stride)
        if self.positions == "valid":
            return valid
        part = _region(student, "main")[level]
        if self.positions == "assigned":
            part = part + _region(student, "background")[level]
        else:
            part = part.any().expand_as(part).to(part)
        return part if valid is None else part * valid

    def _importance(self, inputs: KnowledgeInput, level: str) -> Tensor:
        """What a position counts by the two class scores there."""
        student, teacher = inputs.student, inputs.teacher
        if self.weights == "difference":
            apart = probabilities(student, level) - probabilities(teacher, level)
            return apart.abs().amax(1, keepdim=True)
        weight = confidence(teacher, level)
        return weight.amax(2, keepdim=True).expand_as(weight) if self.weights == "peak" and weight.ndim > 2 else weight

    def _total(self, inputs: KnowledgeInput, weights: Mapping[str, Tensor | None]) -> Tensor | float | None:
        """What the sums of every level are divided by; None where each by its own weights."""
        student = inputs.student
        if self.per == "positive":
            return _positives(student)
        if self.per == "centerness":
            marked = _region(student, "centerness").values()
            return torch.stack([level_weights.sum() for level_weights in marked]).sum().clamp_min(_LEAST_CENTERNESS)
        if self.per == "pyramid":
            sums = [
                student.logits[level].new_tensor(student.logits[level][:, 0].numel())
                if level_weights is None
                else level_weights.sum()
                for level, level_weights in weights.items()
            ]
            total = torch.stack(sums).sum()
            return total + (total == 0)
        return 1.0 if self.per == "batch" else None


def _cell_total(logits: Tensor, weight: Tensor | None) -> Tensor | float | None:
    """The sum of the weights of cells; None of rows, which have none."""
    if logits.ndim == 2:
        return None
    total = logits[:, 0].numel() if weight is None else weight.sum()
    share = total / logits.shape[2]
    return share + (share == 0)


def _positives(student: DetectorOutput) -> Tensor:
    """The number of the student's positives, of which an image has one at least."""
    marked = _region(student, "main")
    if REGION in marked and student.proposals is not None:
        images = marked[REGION].split([len(image_proposals) for image_proposals in student.proposals])
        return torch.stack([image_weights.sum() for image_weights in images]).clamp_min(1).sum()
    return torch.stack([level_weights.flatten(1).sum(1) for level_weights in marked.values()]).sum(0).clamp_min(1).sum()


def _region(student: DetectorOutput, name: str, boxes: Sequence[Tensor] | None = None) -> Mapping[str, Tensor]:
    if student.region is None:
        raise ValueError(f"the student's output marks no region {name}; a pass in training mode with targets does")
    return student.region(name, boxes)
