"""Crops of the feature maps at objects: those of the ground truth, or those that both detectors tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch

from detkds.arguments import Count, piece
from detkds.knowledge.crops import Crops
from detkds.knowledge.general_instances import general_instances, general_refusal
from detkds.knowledge.geometry import fits_level
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, Kind, KnowledgeInput, Pair


@KNOWLEDGE.register("instance")
@piece
class Instance(Knowledge):
    """Features inside each object, cropped before any transform: ``(R, C, size, size)`` per level, R objects.

    Args:
        size: cells per side of a crop.
        assign: ``all`` crops every object on every level; ``fpn`` on the one level that fits its size; ``pooled`` as
            ``fpn``, with the crops of all levels in one pair.
        source: ``gt``, the ground truth; ``gi``, general instances: where student and teacher disagree the most about
            a class, the box of the one who believes in it more
            (:func:`~detkds.knowledge.general_instances.general_instances`).

    Degenerate: a batch without objects gives empty pairs, whose loss is 0.
    Source: DetKDS section 3.1; GID (Dai et al., CVPR 2021), section 3, pools general instances.
    Differs: the released code transforms the map first, then crops 14 x 14 cells at a scale that ignores the transform;
        7 x 7, as region heads take, costs a quarter.
    """

    size: Count = 7
    assign: Literal["all", "fpn", "pooled"] = "all"
    source: Literal["gt", "gi"] = "gt"

    yields: ClassVar[Kind] = "feature"

    @property
    def reads_responses(self) -> bool:
        """Whether the class scores and boxes of both are needed too."""
        return self.source == "gi"

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        boxes = general_instances(inputs) if self.source == "gi" else inputs.boxes("instance")
        strides = sorted(inputs.levels.values())
        crops = []
        for _, stride, ours, theirs in inputs.features():
            chosen = [b if self.assign == "all" else b[fits_level(b, stride, strides)] for b in boxes]
            crop = Crops(chosen, ours.shape[-2:], stride, self.size, like=ours)
            crops.append((crop(ours), crop(theirs)))
        if self.assign == "pooled":
            crops = [tuple(map(torch.cat, zip(*crops, strict=True)))] if crops else []
        for ours, theirs in crops:
            yield Pair(ours, theirs)

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        channels = {spec.channels for spec in teacher.features.values()}
        if self.assign == "pooled" and len(channels) > 1:
            return f"crops of all levels in one pair need equal channels; the teacher has {sorted(channels)}"
        return general_refusal(student, teacher) if self.source == "gi" else None
