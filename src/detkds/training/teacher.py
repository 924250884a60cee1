"""The frozen teacher's forward pass: evaluation mode, no gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch

from detkds.detectors.base import Detector
from detkds.structures import Batch, DetectorOutput

TeacherForward = Callable[[int, int, Batch, bool], DetectorOutput]
"""From an epoch, a batch's index in it, the batch, and whether responses are wanted, to the teacher's output."""


def teacher_forward(teacher: Detector, batch: Batch, *, responses: bool = True) -> DetectorOutput:
    """One pass of the frozen teacher; without ``responses`` a dense teacher's head is left out."""
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


def live(teacher: Detector) -> TeacherForward:
    """Runs the teacher on every batch."""
    teacher.requires_grad_(False)
    return lambda epoch, index, batch, responses: teacher_forward(teacher, batch, responses=responses)
