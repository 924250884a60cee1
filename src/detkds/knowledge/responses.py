"""What the knowledge of responses shares: their levels, and what each of their positions counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from detkds.knowledge.geometry import valid_cells
from detkds.structures import DetectorInfo, DetectorOutput

REGION = "roi"
_ROWS = {"region": REGION, "query": "query"}

Weights = Literal["valid", "cells", "confidence", "difference", "positive", "main", "vlr"]
"""What a position counts.

``valid``: all alike, but those on padding, which count 0 with every other choice but ``cells`` too; ``cells``: all of a
dense head alike; ``confidence``: by the teacher's largest probability; ``difference``: by the largest difference
between the two probabilities of a class; ``positive``: only anchors that the student's own losses take for an object;
``main``: the same, by the student's largest probability; ``vlr``: the anchors around, by their IoU with the object.
No gradient flows through any of them.
"""

Per = Literal["weight", "positive", "batch"]
"""What the weighted sum is divided by: the sum of the weights (as the distance states), the number of the student's
positive anchors, at least 1 for each image, or nothing at all."""

_REGIONS = {"positive": "main", "main": "main", "vlr": "vlr"}


def response_levels(student: DetectorOutput, levels: Mapping[str, float]) -> Mapping[str, float]:
    """The keys under which responses stand: the pyramid's levels, or one alone for the rows of other heads."""
    if (rows := _ROWS.get(student.layout.kind)) is not None:
        return {rows: 0}
    return {level: stride for level, stride in levels.items() if level in student.logits}


def weighting_refusal(weights: Weights, per: Per, student: DetectorInfo) -> str | None:
    """Why a student's positions cannot be weighted like this; None where they can."""
    if weights == "cells" and student.layout.kind != "dense":
        return f"weights=cells is for the cells of a dense head, not for a {student.layout.kind} head"
    for argument, region in ((f"weights={weights}", _REGIONS.get(weights)), (f"per={per}", _REGIONS.get(per))):
        if region is not None and region not in student.regions:
            marked = ", ".join(student.regions) or "none"
            return f"{argument} needs a student that marks the region {region} of its anchors; this one marks {marked}"
    return None


@torch.no_grad()
def position_weights(
    weights: Weights, student: DetectorOutput, teacher: DetectorOutput, level: str, stride: float
) -> Tensor | None:
    """``(N, 1, A, H, W)``, or ``(R, 1)`` of rows; None where all positions count alike.

    Raises:
        ValueError: the weights need a region, and the student's output marks none: it had no targets.
    """
    if weights == "cells":
        return None
    valid = valid_positions(student, student.logits[level], stride)
    if weights == "valid":
        return valid
    if weights == "confidence":
        weight = confidence(teacher, level)
    elif weights == "difference":
        apart = probabilities(student, level) - probabilities(teacher, level)
        weight = apart.abs().amax(1, keepdim=True)
    else:
        weight = _region(student, _REGIONS[weights])[level]
        weight = weight * confidence(student, level) if weights == "main" else weight
    return weight if valid is None else weight * valid


def weight_divisor(per: Per, student: DetectorOutput) -> Tensor | float | None:
    """What the weighted sum over the positions of any level is divided by; None for the sum of its weights.

    Raises:
        ValueError: the number of positives is wanted, and the student's output marks none: it had no targets.
    """
    if per == "weight":
        return None
    if per == "batch":
        return 1.0
    counts = [marked.flatten(1).sum(1) for marked in _region(student, "main").values()]
    return torch.stack(counts).sum(0).clamp_min(1).sum()


def valid_positions(output: DetectorOutput, response: Tensor, stride: float) -> Tensor | None:
    """``(N, 1, A, H, W)`` of 0 and 1: positions inside the un-padded images; None for rows."""
    if response.ndim == 2:
        return None
    cells = valid_cells(output.image_sizes, response.shape[-2:], stride)[:, :, None]
    return cells.expand(-1, -1, response.shape[2], -1, -1).to(response)


def confidence(output: DetectorOutput, level: str) -> Tensor:
    """The largest foreground probability at each position: ``(N, 1, A, H, W)``, or ``(R, 1)`` of rows."""
    return probabilities(output, level).amax(1, keepdim=True)


def probabilities(output: DetectorOutput, level: str) -> Tensor:
    """The probability of each foreground class: ``(N, K, A, H, W)``, or ``(R, K)`` of rows."""
    logits = output.logits[level]
    if output.layout.activation == "softmax":
        return torch.softmax(logits, 1)[:, 1:]
    return torch.sigmoid(logits)


def _region(student: DetectorOutput, name: str) -> Mapping[str, Tensor]:
    if student.region is None:
        raise ValueError(f"the student's output marks no region {name}; a pass in training mode with targets does")
    return student.region(name)
