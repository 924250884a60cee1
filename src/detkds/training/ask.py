"""How a teacher is asked: one forward pass, frozen, in evaluation mode."""

from __future__ import annotations

import torch

from detkds.detectors.base import Detector
from detkds.structures import Batch, DetectorOutput


def ask(teacher: Detector, batch: Batch, *, responses: bool = True) -> DetectorOutput:
    """One pass of the frozen teacher in evaluation mode; without ``responses`` a dense teacher's head is left out."""
    teacher.eval()
    runs_head = getattr(teacher, "responses", None)
    if runs_head is not None:
        teacher.responses = runs_head and responses  # type: ignore[assignment]
    try:
        with torch.no_grad():
            return teacher(batch)
    finally:
        if runs_head is not None:
            teacher.responses = runs_head
