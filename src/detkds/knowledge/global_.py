"""Whole feature maps, every position alike or some more than others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from detkds.alignment import response_mismatch
from detkds.arguments import piece
from detkds.knowledge.anchor_mask import anchor_mask
from detkds.knowledge.geometry import valid_cells
from detkds.knowledge.responses import confidence
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, Kind, KnowledgeInput, Pair


@KNOWLEDGE.register("global")
@piece
class Global(Knowledge):
    """The feature maps of the pyramid, one pair ``(N, C, H, W)`` per level.

    Args:
        mask: what a position counts: ``none``, all alike; ``score``, by the teacher's largest class probability there,
            over classes and anchors; ``anchor``, 1 where an anchor overlaps an object about as much as the best one
            does (:func:`~detkds.knowledge.anchor_mask.anchor_mask`) and 0 elsewhere.
        positions: whether, with a mask, those on padding count 0 (``valid``) or by the mask as others (``all``).

    Source: DetKDS section 3.1; FitNets (Romero et al., ICLR 2015) is this knowledge with no transform and ``l2``;
        ``score`` of FRS (Du et al., NeurIPS 2021); ``anchor`` of FGFI (Wang et al., CVPR 2019).
    """

    mask: Literal["none", "score", "anchor"] = "none"
    positions: Literal["valid", "all"] = "valid"

    yields: ClassVar[Kind] = "feature"

    @property
    def reads_responses(self) -> bool:
        """Whether the teacher's class scores are needed too."""
        return self.mask == "score"

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        for level, stride, student, teacher in inputs.features():
            if self.mask == "none":
                yield Pair(student, teacher)
            elif self.mask == "anchor" or level in inputs.teacher.logits:
                weight = self._weight(inputs, level, stride, teacher.shape[-2:]).to(teacher)
                if self.positions == "valid":
                    weight = weight * valid_cells(inputs.student.image_sizes, teacher.shape[-2:], stride)
                yield Pair(student, teacher, weight=weight)

    def _weight(self, inputs: KnowledgeInput, level: str, stride: float, size: torch.Size) -> Tensor:
        if self.mask == "anchor":
            return anchor_mask(inputs.boxes("global(mask=anchor)"), size, stride)
        return confidence(inputs.teacher, level).detach().amax(2)

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        if self.mask != "score":
            return None
        kinds = student.layout.kind, teacher.layout.kind
        if kinds != ("dense", "dense"):
            return "a score for every cell needs dense heads; student {}, teacher {}".format(*kinds)
        return response_mismatch(student, teacher)
