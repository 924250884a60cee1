"""What knowledge with learned parts has in common: one part for every level."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from detkds.structures import KnowledgeInput, Pair


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

    def forward(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        """The pairs of all levels; the levels are those that the parts were made for."""
        for (_, _, student, teacher), part in zip(inputs.features(), self.parts, strict=True):
            yield from part(student, teacher, inputs.generator) if self.draws else part(student, teacher)
