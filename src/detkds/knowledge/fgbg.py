"""Foreground and background of the feature maps, imitated apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch

from detkds.arguments import NonNegative, piece
from detkds.knowledge.geometry import fits_level, foreground_weight, valid_cells
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import Kind, KnowledgeInput, Pair


@KNOWLEDGE.register("fgbg")
@piece
class ForegroundBackground(Knowledge):
    """Two pairs ``(N, C, H, W)`` per level: cells inside ground-truth boxes, and the rest.

    The loss over the foreground weights a cell by the largest 1/area of the boxes over it, so that small objects count
    as much as large ones; over the background all cells weigh alike.

    Args:
        background: factor of the background pair.
        mask: weights of the foreground: ``area`` as above, or ``binary``, all cells alike.
        assign: ``all`` takes every object on every level; ``fpn`` on the one level that fits its size, so that it is
            background on the others.
        balance: whether background cells weigh alike in the ``batch``, or those of every ``image`` sum to 1.
        cut: whether each side is set to 0 outside its part. Where not, transforms see the whole map, and the weights
            alone tell the parts.
        partial: whether a box has the cells that its right and bottom edges cut; if not, one without a whole cell in
            its width or height has the cell of its corner alone.
        positions: whether padding is neither part (``valid``) or background (``all``).

    Source: DetKDS section 3.1; FGD (Yang et al., CVPR 2022), section 3.1, has area weights and balances images;
        DeFeat (Guo et al., CVPR 2021), section 3, has binary masks of assigned objects.
    Differs: the released code divides boxes by the un-padded image size, which shifts masks on padded maps; here boxes
        are divided by the stride.
    """

    background: NonNegative = 0.5
    mask: Literal["area", "binary"] = "area"
    assign: Literal["all", "fpn"] = "all"
    balance: Literal["batch", "image"] = "batch"
    cut: bool = True
    partial: bool = True
    positions: Literal["valid", "all"] = "valid"

    yields: ClassVar[Kind] = "feature"

    def __call__(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        boxes = inputs.boxes("fgbg")
        strides = sorted(inputs.levels.values())
        for _, stride, ours, theirs in inputs.features():
            chosen = (
                boxes
                if self.assign == "all"
                else [image_boxes[fits_level(image_boxes, stride, strides)] for image_boxes in boxes]
            )
            valid = valid_cells(inputs.student.image_sizes, ours.shape[-2:], stride).to(ours)
            if self.positions == "all":
                valid = torch.ones_like(valid)
            foreground = foreground_weight(chosen, ours.shape[-2:], stride, partial=self.partial).to(ours) * valid
            background = valid * (foreground == 0)
            if self.mask == "binary":
                foreground = (foreground > 0).to(ours)
            if self.balance == "image":
                background = background / background.sum((1, 2, 3), keepdim=True).clamp_min(1)
            for weight, factor in ((foreground, 1.0), (background, self.background)):
                mask = (weight > 0).to(ours.dtype)
                parts = (ours * mask, theirs * mask) if self.cut else (ours, theirs)
                yield Pair(*parts, weight=weight, factor=factor)
