from __future__ import annotations

import math

import pytest
import torch

from detkds.structures import Pair
from detkds.transforms.local import Local, Windows

SIZES = [(4, 4), (4, 8), (5, 7), (6, 9), (5, 4), (1, 8), (3, 2)]


def numbered(height: int, width: int, images: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.arange(1.0, images * channels * height * width + 1).view(images, channels, height, width)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [2, 3, 4])
def test_local_matches_the_loop(size: tuple[int, int], n: int) -> None:
    height, width = size
    feature = numbered(*size)
    result = Local(n)(Pair(feature, -feature))
    if min(size) < n:
        assert torch.equal(result.student, feature) and result.weight is None
        return
    rows, columns = math.ceil(height / n), math.ceil(width / n)
    assert result.student.shape == (n * n * 2, 3, rows, columns)
    assert torch.equal(result.teacher, -result.student)
    for tile_row in range(n):
        for tile_column in range(n):
            for row in range(rows):
                for column in range(columns):
                    y, x = tile_row * rows + row, tile_column * columns + column
                    batch = slice((tile_row * n + tile_column) * 2, (tile_row * n + tile_column + 1) * 2)
                    expected = feature[:, :, min(y, height - 1), min(x, width - 1)]
                    assert torch.equal(result.student[batch, :, row, column], expected)
                    if result.weight is not None:
                        inside = float(y < height and x < width)
                        assert result.weight[batch, :, row, column].unique().tolist() == [inside]
    assert (result.weight is None) == (height % n == 0 and width % n == 0)


@pytest.mark.parametrize("n", [2, 4])
def test_local_can_be_undone(n: int) -> None:
    feature = numbered(8, 12)
    tiles = Local(n)(Pair(feature, feature)).student
    undone = tiles.view(n, n, 2, 3, 8 // n, 12 // n).permute(2, 3, 0, 4, 1, 5).reshape(2, 3, 8, 12)
    assert torch.equal(undone, feature)


def test_local_one_is_the_identity() -> None:
    pair = Pair(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
    assert Local(1)(pair) is pair


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_windows_match_the_loop(size: tuple[int, int], n: int) -> None:
    height, width = size
    feature = numbered(*size)
    result = Windows(n)(Pair(feature, -feature))
    rows, columns = math.ceil(height / n), math.ceil(width / n)
    assert result.student.shape == (2, 3 * rows * columns, n, n)
    for channel in range(3):
        for window in range(rows * columns):
            for row in range(n):
                for column in range(n):
                    y, x = window // columns * n + row, window % columns * n + column
                    inside = y < height and x < width
                    got = result.student[:, channel * rows * columns + window, row, column]
                    assert torch.equal(got, feature[:, channel, y, x] if inside else torch.zeros(2))
                    if result.weight is not None:
                        weight = result.weight[:, channel * rows * columns + window, row, column]
                        assert weight.unique().tolist() == [float(inside)]


@pytest.mark.parametrize("cls", [Local, Windows])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weight_shape", [None, "position", "element", "image", "shared"])
def test_weighted_mean_is_that_of_the_whole_map(
    cls: type, size: tuple[int, int], weight_shape: str | None, generator: torch.Generator
) -> None:
    """Cutting only moves elements: padded cells must not count and weights must travel with their cells."""
    feature = torch.randn(2, 3, *size, generator=generator)
    shapes = {"position": (2, 1, *size), "element": (2, 3, *size), "image": (2, 1, 1, 1), "shared": (1, 1, *size)}
    weight = None if weight_shape is None else torch.rand(shapes[weight_shape], generator=generator)
    before = Pair(feature, feature, weight=weight)
    after = cls(3)(before)
    torch.testing.assert_close(after.mean(after.student), before.mean(feature))


def test_padded_tile_carries_no_weight() -> None:
    """Five rows in four tiles of two: the last tile is all padding."""
    feature = numbered(5, 4, images=1, channels=1)
    weight = Local(4)(Pair(feature, feature)).weight
    assert weight is not None
    assert weight.sum() == 20
    assert weight[12:].sum() == 0
