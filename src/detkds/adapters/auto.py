"""The adapter of a term that names none."""

from __future__ import annotations

import torch
from torch import nn

from detkds.adapters.conv import Conv
from detkds.arguments import piece
from detkds.protocols import Adapter
from detkds.registry import ADAPTERS


@ADAPTERS.register("auto")
@piece
class Auto(Adapter):
    """A 1x1 convolution where the channels differ, and nothing where they agree.

    Source: FitNets (Romero et al., ICLR 2015), section 2.2, whose regressor fits the student's hint layer.
    """

    def build(self, student: int, teacher: int, generator: torch.Generator) -> nn.Module | None:
        """The convolution from ``student`` to ``teacher`` channels; None where they agree."""
        return Conv(1).build(student, teacher, generator) if student != teacher else None
