"""The cells near an object: those whose anchors overlap its box about as much as the best anchor does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SIDE = 8  # in strides
_RATIOS = (0.5, 1.0, 2.0)


def anchor_mask(boxes: Sequence[Tensor], size: Sequence[int], stride: float, share: float = 0.5) -> Tensor:
    """``(N, 1, H, W)`` bool: cells with an anchor of an IoU with some box above ``share`` of the box's best on the map.

    The anchors are those of a region proposal network, whatever the detector's own: boxes of side 8 strides and ratios
    0.5, 1 and 2 around the centre of every cell. A box that no anchor touches has no cells.

    Args:
        boxes: per image ``(R_i, 4)`` xyxy pixels.
        size: height and width of the map.
        stride: pixels per cell.

    Source: FGFI (Wang et al., CVPR 2019), section 3, on each level by itself.
    """
    device = boxes[0].device if len(boxes) else torch.device("cpu")
    ratios = torch.tensor(_RATIOS, device=device).sqrt()
    heights, widths = _SIDE * stride * ratios, _SIDE * stride / ratios
    masks = []
    for image_boxes in boxes:
        across = _overlap(image_boxes[:, 0], image_boxes[:, 2], widths, size[1], stride)[:, :, None, :]
        down = _overlap(image_boxes[:, 1], image_boxes[:, 3], heights, size[0], stride)[:, :, :, None]
        inner = down * across  # (R, ratios, H, W)
        area = ((image_boxes[:, 2] - image_boxes[:, 0]) * (image_boxes[:, 3] - image_boxes[:, 1]))[
            :, None
        ] + heights * widths
        iou = inner / (area[:, :, None, None] - inner)
        best = iou.flatten(1).amax(1) if len(image_boxes) else iou.new_zeros(0)
        masks.append(((iou > share * best[:, None, None, None]) & (iou > 0)).any(1).any(0))
    return torch.stack(masks)[:, None] if masks else torch.zeros(0, 1, *size, dtype=torch.bool)


def _overlap(start: Tensor, end: Tensor, lengths: Tensor, cells: int, stride: float) -> Tensor:
    """``(R, ratios, cells)``: the pixels that a box and an anchor share along one axis."""
    centres = (torch.arange(cells, device=start.device) + 0.5) * stride
    low, high = centres - lengths[:, None] / 2, centres + lengths[:, None] / 2
    shared = torch.minimum(end[:, None, None], high) - torch.maximum(start[:, None, None], low)
    return shared.clamp_min(0)
