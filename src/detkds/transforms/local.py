"""Maps cut into parts: the paper's grid of tiles, and the released code's windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from detkds.arguments import Count, piece
from detkds.protocols import Stage, Transform
from detkds.registry import TRANSFORMS
from detkds.structures import Kind, Pair


@TRANSFORMS.register("local")
@piece
class Local(Transform):
    """Cut the map into an n x n grid of tiles, each one more sample of the batch.

    Maps that n does not divide are padded by repeating the last row and column; padded cells have weight 0. A map
    with fewer than n rows or columns stays as it is, and ``local(1)`` is the identity.

    Shapes:  (N, C, H, W) -> (n n N, C, ceil(H / n), ceil(W / n)); sample i of tile t lies at t N + i
    Source:  DetKDS, section 3.2.
    """

    stage: ClassVar[Stage] = "scale"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    n: Count

    @property
    def neutral(self) -> bool:
        return self.n == 1

    def __call__(self, pair: Pair) -> Pair:
        height, width = pair.student.shape[2:]
        if self.n == 1 or min(height, width) < self.n:
            return pair
        tile_height, tile_width = math.ceil(height / self.n), math.ceil(width / self.n)
        below, right = tile_height * self.n - height, tile_width * self.n - width

        cells = torch.arange(self.n * tile_height * self.n * tile_width, device=pair.student.device)
        tile_by_tile = cells.view(self.n, tile_height, self.n, tile_width).transpose(1, 2).flatten()

        def cut(tensor: Tensor) -> Tensor:
            images, channels = tensor.shape[:2]
            tiles = tensor.reshape(images * channels, len(tile_by_tile)).index_select(1, tile_by_tile)
            tiles = tiles.view(images, channels, self.n**2, tile_height, tile_width)
            return tiles.permute(2, 0, 1, 3, 4).reshape(-1, channels, tile_height, tile_width)

        weight = _cut_weight(pair, below, right, cut)
        return pair.map(lambda tensor: cut(_repeat_edge(tensor, below, right)), weight=weight)


@TRANSFORMS.register("win")
@piece
class Windows(Transform):
    """Cut the map into windows of n x n cells, each window of each channel one more channel.

    Maps that n does not divide are padded with zeros of weight 0.

    Shapes:  (N, C, H, W) -> (N, C ceil(H / n) ceil(W / n), n, n)
    Source:  what the authors' code does under the name of ``local``.
    """

    stage: ClassVar[Stage] = "scale"
    kinds: ClassVar[Mapping[Kind, Kind]] = {"feature": "feature"}

    n: Count

    def __call__(self, pair: Pair) -> Pair:
        channels, height, width = pair.student.shape[1:]
        below, right = -height % self.n, -width % self.n
        rows, columns = (height + below) // self.n, (width + right) // self.n

        def cut(tensor: Tensor) -> Tensor:
            images = tensor.shape[0]
            grid = tensor.expand(-1, channels, -1, -1).reshape(images, channels, rows, self.n, columns, self.n)
            return grid.permute(0, 1, 2, 4, 3, 5).reshape(images, channels * rows * columns, self.n, self.n)

        weight = _cut_weight(pair, below, right, cut)
        return pair.map(lambda tensor: cut(F.pad(tensor, (0, right, 0, below))), weight=weight)


def _repeat_edge(tensor: Tensor, below: int, right: int) -> Tensor:
    """Repeat the last row and column; concatenation, because its backward pass is deterministic on every device."""
    if below:
        tensor = torch.cat([tensor, tensor[:, :, -1:].expand(-1, -1, below, -1)], 2)
    if right:
        tensor = torch.cat([tensor, tensor[..., -1:].expand(-1, -1, -1, right)], 3)
    return tensor


def _cut_weight(pair: Pair, below: int, right: int, cut: Callable[[Tensor], Tensor]) -> Tensor | None:
    """The pair's weight, 0 on padded cells, cut like the tensors; None where there is nothing to weigh."""
    weight = pair.weight
    if weight is None:
        if not (below or right):
            return None
        weight = pair.teacher.new_ones(1, 1, 1, 1)
    images, _, height, width = pair.student.shape
    return cut(F.pad(weight.expand(images, -1, height, width), (0, right, 0, below)))
