"""Whole feature maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, DetectorOutput, Kind, Pair, Target


@KNOWLEDGE.register("global")
@dataclass(frozen=True)
class Global:
    """The feature maps of the pyramid, one pair ``(N, C, H, W)`` per level.

    Source: DetKDS section 3.1; FitNets (Romero et al., 2015) is this knowledge with no transform and ``l2``.
    """

    name: ClassVar[str]
    yields: ClassVar[Kind] = "feature"

    def __call__(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Target] | None,
        levels: Mapping[str, float],
    ) -> Iterator[Pair]:
        for level in levels:
            yield Pair(student.features[level], teacher.features[level])

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        return None
