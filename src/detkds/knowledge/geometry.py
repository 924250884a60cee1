"""Where boxes and valid areas lie on a feature map: always by stride, never by image size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detkds.structures import Target

_CHUNK = 1 << 23  # box x cell products held at once


def boxes_of(targets: Sequence[Target] | None, knowledge: str) -> list[Tensor]:
    """The ground-truth boxes ``(R_i, 4)`` of every image.

    Raises:
        ValueError: there are no targets.
    """
    if targets is None:
        raise ValueError(f"knowledge {knowledge!r} needs the targets of the batch; pass them to the distiller")
    return [target["boxes"] for target in targets]


def valid_cells(image_sizes: Tensor, size: Sequence[int], stride: int) -> Tensor:
    """``(N, 1, H, W)`` bool: the cells that begin inside the un-padded image."""
    rows = torch.arange(size[0], device=image_sizes.device) * stride
    columns = torch.arange(size[1], device=image_sizes.device) * stride
    heights, widths = image_sizes.unbind(1)
    inside = (rows < heights[:, None])[:, :, None] & (columns < widths[:, None])[:, None, :]
    return inside[:, None]


def foreground_weight(boxes: Sequence[Tensor], size: Sequence[int], stride: int) -> Tensor:
    """``(N, 1, H, W)``: the largest 1/area, in cells, of the boxes over each cell; 0 outside all boxes.

    A box covers the cells ``[floor(x1/s), ceil(x2/s))`` by ``[floor(y1/s), ceil(y2/s))``, at least one.
    """
    height, width = size
    flat = torch.cat(list(boxes))
    image = torch.repeat_interleave(
        torch.arange(len(boxes), device=flat.device), torch.tensor([len(b) for b in boxes], device=flat.device)
    )
    left, right = _span(flat[:, 0], flat[:, 2], stride, width)
    top, bottom = _span(flat[:, 1], flat[:, 3], stride, height)
    inverse_area = 1.0 / ((right - left) * (bottom - top)).float()
    rows = torch.arange(height, device=flat.device)
    columns = torch.arange(width, device=flat.device)
    weight = torch.zeros(len(boxes), height * width, device=flat.device)
    step = max(1, _CHUNK // (height * width))
    for part in range(0, len(flat), step):
        chunk = slice(part, part + step)
        in_rows = (rows >= top[chunk, None]) & (rows < bottom[chunk, None])
        in_columns = (columns >= left[chunk, None]) & (columns < right[chunk, None])
        window = (in_rows[:, :, None] & in_columns[:, None, :]) * inverse_area[chunk, None, None]
        weight.index_reduce_(0, image[chunk], window.flatten(1), "amax")
    return weight.view(len(boxes), 1, height, width)


def _span(start: Tensor, end: Tensor, stride: int, length: int) -> tuple[Tensor, Tensor]:
    first = (start / stride).floor().clamp(0, length - 1)
    last = (end / stride).ceil().clamp(max=length)
    return first, torch.maximum(last, first + 1)
