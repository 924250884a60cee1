"""Where boxes and valid areas lie on a feature map: always by stride, never by image size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_CHUNK = 1 << 23  # box x cell products held at once
_CANONICAL_SIZE, _CANONICAL_LEVEL = 224.0, 4


def valid_cells(image_sizes: Tensor, size: Sequence[int], stride: float) -> Tensor:
    """``(N, 1, H, W)`` bool: the cells that begin inside the un-padded image."""
    rows = torch.arange(size[0], device=image_sizes.device) * stride
    columns = torch.arange(size[1], device=image_sizes.device) * stride
    heights, widths = image_sizes.unbind(1)
    inside = (rows < heights[:, None])[:, :, None] & (columns < widths[:, None])[:, None, :]
    return inside[:, None]


def foreground_weight(boxes: Sequence[Tensor], size: Sequence[int], stride: float, *, partial: bool = True) -> Tensor:
    """``(N, 1, H, W)``: the largest 1/area, in cells, of the boxes over each cell; 0 outside all boxes.

    A box covers the cells ``[floor(x1/s), ceil(x2/s))`` by ``[floor(y1/s), ceil(y2/s))``, at least one. Without
    ``partial`` it covers ``[floor(x1/s), floor(x2/s))`` by ``[floor(y1/s), floor(y2/s))``, or where that is empty its
    top left cell.
    """
    height, width = size
    padded = pad_sequence(list(boxes), batch_first=True)  # (N, R, 4)
    left, right = _span(padded[..., 0], padded[..., 2], stride, width)
    top, bottom = _span(padded[..., 1], padded[..., 3], stride, height)
    if not partial:
        right, bottom = (
            (padded[..., side] / stride).floor().clamp(max=cells) for side, cells in ((2, width), (3, height))
        )
        empty = (right <= left) | (bottom <= top)
        right, bottom = torch.where(empty, left + 1, right), torch.where(empty, top + 1, bottom)
    counts = torch.tensor([len(image_boxes) for image_boxes in boxes], device=padded.device)
    exists = torch.arange(padded.shape[1], device=padded.device) < counts[:, None]
    inverse_area = exists / ((right - left) * (bottom - top)).float()
    rows = torch.arange(height, device=padded.device)
    columns = torch.arange(width, device=padded.device)
    in_rows = (rows >= top[..., None]) & (rows < bottom[..., None])
    in_columns = (columns >= left[..., None]) & (columns < right[..., None])
    tall = in_rows * inverse_area[..., None]  # (N, R, H)
    weight = torch.zeros(len(boxes), height, width, device=padded.device)
    step = max(1, _CHUNK // (len(boxes) * height * width))
    for part in range(0, padded.shape[1], step):
        chunk = slice(part, part + step)
        window = tall[:, chunk, :, None] * in_columns[:, chunk, None, :]
        weight = torch.maximum(weight, window.amax(1))
    return weight[:, None]


def fits_level(boxes: Tensor, stride: float, strides: Sequence[float]) -> Tensor:
    """``(R,)`` bool: the boxes whose size belongs on the level of this stride; ``strides`` are all, finest first.

    Source: FPN (Lin et al., CVPR 2017), equation 1.
    """
    size = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).clamp_min(1e-6).sqrt()
    level = torch.floor(_CANONICAL_LEVEL + torch.log2(size / _CANONICAL_SIZE + 1e-8))
    finest, own, coarsest = (round(math.log2(pixels)) for pixels in (strides[0], stride, strides[-1]))
    return level.clamp(finest, coarsest) == own


def _span(start: Tensor, end: Tensor, stride: float, length: int) -> tuple[Tensor, Tensor]:
    first = (start / stride).floor().clamp(0, length - 1)
    last = (end / stride).ceil().clamp(max=length)
    return first, torch.maximum(last, first + 1)
