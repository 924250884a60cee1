"""Instance masks of regions: what a mask head is trained on, its loss, and masks pasted into the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align

from detkds.detectors.two_stage.options import MaskOptions

_MOST_PIXELS = 2**24
"""Pixels of whole-image masks held as numbers at once; more are handled a few masks at a time."""


def mask_branch(options: MaskOptions) -> tuple[nn.Module, nn.Module]:
    """torchvision's head and predictor: ``(R, C, m, m)`` to ``(R, K+1, 2 m, 2 m)`` logits."""
    inputs, channels, convs = options.neck_channels, options.mask_channels, options.mask_convs
    head = MaskRCNNHeads(inputs, [channels] * convs, dilation=1, norm_layer=options.norm_layer)
    return head, MaskRCNNPredictor(channels if convs else inputs, channels, len(options.class_names) + 1)


def mask_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean binary cross-entropy of ``(P, m, m)`` logits, 0 for none (He et al. 2017, arXiv 1703.06870, section 3)."""
    if not len(logits):
        return logits.sum() * 0
    return functional.binary_cross_entropy_with_logits(logits, wanted)


def crop_masks(masks: Tensor, boxes: Tensor, matched: Tensor, cells: int) -> Tensor:
    """What of each matched mask ``(G, H, W)`` lies in its box ``(P, 4)``: ``(P, cells, cells)`` in [0, 1].

    ``matched (P,)`` are indices into the masks. Each mask in use is turned to numbers once, a few at a time.
    """
    crops = boxes.new_zeros(len(boxes), cells, cells)
    used, place = matched.unique(return_inverse=True)
    step = max(1, _MOST_PIXELS // max(1, masks.shape[1] * masks.shape[2]))
    for start in range(0, len(used), step):
        rows = ((place >= start) & (place < start + step)).nonzero()[:, 0]
        regions = torch.cat([(place[rows, None] - start).to(boxes), boxes[rows]], dim=1)
        whole = masks[used[start : start + step], None].to(boxes)
        crops[rows] = roi_align(whole, regions, cells)[:, 0]
    return crops


def paste(probabilities: Tensor, boxes: Tensor, image_size: Sequence[int]) -> Tensor:
    """Masks ``(R, H, W)`` bool of an image from probabilities ``(R, m, m)`` in boxes ``(R, 4)``, cut at one half."""
    height, width = image_size
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    step = max(1, _MOST_PIXELS // (height * width))
    for start in range(0, len(boxes), step):
        rows = slice(start, start + step)
        masks[rows] = paste_masks_in_image(probabilities[rows, None], boxes[rows], (height, width))[:, 0] > 0.5
    return masks
