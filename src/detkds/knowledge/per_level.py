"""What knowledge with learned parts has in common: one part for every level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn

from detkds.structures import DetectorOutput, Pair, Target


class PerLevel(nn.Module):
    """Called like knowledge; asks one part per level, in their order, for the pairs of that level.

    Args:
        parts: modules of the student's and the teacher's map ``(N, C, H, W)`` that return pairs.
        draws: whether the parts draw random numbers, and are given a generator after the maps.
    """

    def __init__(self, parts: Iterable[nn.Module], *, draws: bool = False) -> None:
        super().__init__()
        self.draws = draws
        self.parts = nn.ModuleList(parts)

    def forward(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Target] | None,
        levels: Mapping[str, float],
        generator: torch.Generator | None = None,
    ) -> Iterator[Pair]:
        """The pairs of all levels; the levels are those that the parts were made for."""
        given = (generator,) if self.draws else ()
        for level, part in zip(levels, self.parts, strict=True):
            yield from part(student.features[level], teacher.features[level], *given)
