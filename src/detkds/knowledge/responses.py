"""What the knowledge of responses shares: their levels, their valid positions and their probabilities."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from detkds.knowledge.geometry import valid_cells
from detkds.structures import DetectorOutput, KnowledgeInput

REGION = "roi"
_ROWS = {"region": REGION, "query": "query"}


def response_levels(inputs: KnowledgeInput) -> Mapping[str, float]:
    """The keys under which responses stand: the pyramid's levels, or one alone for the rows of other heads."""
    if (rows := _ROWS.get(inputs.student.layout.kind)) is not None:
        return {rows: 0}
    return {level: stride for level, stride in inputs.levels.items() if level in inputs.student.logits}


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
