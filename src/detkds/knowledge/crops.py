"""Aligned crops of feature maps as two matrix products: fast on small maps, and deterministic on every device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_SAMPLES = 2  # points per bin and axis
_LIMIT = 1 << 27  # numbers held at once between the two products


class Crops:
    """Crops of every box, ``size`` x ``size`` bins each, the same for any number of maps of one level.

    Equal to ``torchvision.ops.roi_align(..., sampling_ratio=2, aligned=True)``: bilinear interpolation is separable, so
    a bin is a weighted mean over rows of a weighted mean over columns.

    Args:
        boxes: per image ``(R_i, 4)`` xyxy pixels.
        shape: height and width of the maps.
        stride: pixels per cell.
        like: a tensor with the dtype and device to compute in.
    """

    def __init__(self, boxes: Sequence[Tensor], shape: Sequence[int], stride: float, size: int, like: Tensor) -> None:
        self.size = size
        padded = pad_sequence(
            [image_boxes.to(like) for image_boxes in boxes], batch_first=True
        )  # (N, R, 4), R the most of an image
        self.most = padded.shape[1]
        kept = [image * self.most + row for image, image_boxes in enumerate(boxes) for row in range(len(image_boxes))]
        self.counts = [len(image_boxes) for image_boxes in boxes]
        self.kept = torch.tensor(kept, dtype=torch.int64, device=like.device)
        self.rows = _shares(padded[..., 1], padded[..., 3], stride, size, shape[0])  # (N, R, size, H)
        columns = _shares(padded[..., 0], padded[..., 2], stride, size, shape[1])  # (N, R, size, W)
        self.columns = columns.flatten(0, 1).index_select(0, self.kept).transpose(1, 2)

    def __call__(self, maps: Tensor) -> Tensor:
        """``(N, C, H, W)`` to ``(R, C, size, size)``, R all boxes in order."""
        images, channels, _, width = maps.shape
        if not len(self.kept):
            return maps.new_zeros(0, channels, self.size, self.size) + 0 * maps.sum()
        step = max(1, _LIMIT // (self.most * self.size * channels * width))
        if step >= images:
            return self._crop(maps, slice(0, images))
        return torch.cat([self._crop(maps, slice(start, start + step)) for start in range(0, images, step)])

    def _crop(self, maps: Tensor, chunk: slice) -> Tensor:
        """The crops of some of the images."""
        maps = maps[chunk]
        images, channels, height, width = maps.shape
        before, count = sum(self.counts[: chunk.start]), sum(self.counts[chunk])
        kept = self.kept[before : before + count] - chunk.start * self.most
        rows = self.rows[chunk].flatten(1, 2) @ maps.transpose(1, 2).reshape(images, height, channels * width)
        rows = rows.view(images * self.most, self.size, channels, width)
        if count < len(rows):
            rows = rows.index_select(0, kept)
        bins = rows.transpose(1, 2).reshape(count, channels * self.size, width) @ self.columns[before : before + count]
        return bins.view(count, channels, self.size, self.size)


def _shares(start: Tensor, end: Tensor, stride: float, size: int, length: int) -> Tensor:
    """``(N, R, size, length)``: the share of each cell along one axis in each bin between ``start`` and ``end``.

    Points outside the map by more than a cell count 0; nearer ones take the border's value.
    """
    bins = torch.arange(0.5, _SAMPLES * size, dtype=start.dtype, device=start.device)
    points = (start / stride - 0.5)[..., None] + ((end - start) / stride)[..., None] * bins / (_SAMPLES * size)
    inside = (points >= -1) & (points <= length)
    points = points.clamp(0, length - 1)
    cells = torch.arange(length, dtype=start.dtype, device=start.device)
    near = (1 - (points[..., None] - cells).abs()).clamp_min(0) * inside.to(start.dtype)[..., None]
    return near.unflatten(-2, (size, _SAMPLES)).mean(-2)
