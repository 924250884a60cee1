"""Whole feature maps, every position alike or some more than others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from detkds.alignment import response_mismatch
from detkds.arguments import check_arguments
from detkds.knowledge.anchor_mask import anchor_mask
from detkds.knowledge.geometry import boxes_of, valid_cells
from detkds.knowledge.responses import confidence
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, DetectorOutput, Kind, Pair, Target


@KNOWLEDGE.register("global")
@dataclass(frozen=True)
class Global:
    """The feature maps of the pyramid, one pair ``(N, C, H, W)`` per level.

    Args:
        mask: what a position counts: ``none``, all alike; ``score``, by the teacher's largest class probability there,
            over classes and anchors; ``anchor``, 1 where an anchor overlaps an object about as much as the best one
            does (:func:`~detkds.knowledge.anchor_mask.anchor_mask`) and 0 elsewhere. With a mask padding counts 0.

    Source: DetKDS section 3.1; FitNets (Romero et al., ICLR 2015) is this knowledge with no transform and ``l2``;
        ``score`` of FRS (Du et al., NeurIPS 2021); ``anchor`` of FGFI (Wang et al., CVPR 2019).
    """

    mask: Literal["none", "score", "anchor"] = "none"

    name: ClassVar[str]
    yields: ClassVar[Kind] = "feature"

    def __post_init__(self) -> None:
        check_arguments(self)

    @property
    def reads_responses(self) -> bool:
        """Whether the teacher's class scores are needed too."""
        return self.mask == "score"

    def __call__(
        self,
        student: DetectorOutput,
        teacher: DetectorOutput,
        targets: Sequence[Target] | None,
        levels: Mapping[str, float],
    ) -> Iterator[Pair]:
        for level, stride in levels.items():
            pair = Pair(student.features[level], teacher.features[level])
            if self.mask == "none":
                yield pair
            elif self.mask == "anchor" or level in teacher.logits:
                weight = self._weight(pair.teacher, teacher, targets, level, stride)
                valid = valid_cells(student.image_sizes, pair.teacher.shape[-2:], stride)
                yield Pair(pair.student, pair.teacher, weight=weight.to(pair.teacher) * valid)

    def _weight(
        self, like: Tensor, teacher: DetectorOutput, targets: Sequence[Target] | None, level: str, stride: float
    ) -> Tensor:
        if self.mask == "anchor":
            return anchor_mask(boxes_of(targets, "global(mask=anchor)"), like.shape[-2:], stride)
        return confidence(teacher, level).detach().amax(2)

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        if self.mask != "score":
            return None
        kinds = student.layout.kind, teacher.layout.kind
        if kinds != ("dense", "dense"):
            return "a score for every cell needs dense heads; student {}, teacher {}".format(*kinds)
        return response_mismatch(student, teacher)
