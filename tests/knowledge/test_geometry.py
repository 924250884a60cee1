"""Where boxes and valid areas lie on a map, against loops over cells."""

from __future__ import annotations

import math

import pytest
import torch

from detkds.knowledge import geometry
from detkds.knowledge.geometry import foreground_weight, valid_cells


def slow_weight(boxes: list[list[float]], size: tuple[int, int], stride: int) -> torch.Tensor:
    """The definition, cell by cell."""
    weight = torch.zeros(size)
    for x1, y1, x2, y2 in boxes:
        left, top = (min(max(math.floor(v / stride), 0), n - 1) for v, n in ((x1, size[1]), (y1, size[0])))
        right = max(min(math.ceil(x2 / stride), size[1]), left + 1)
        bottom = max(min(math.ceil(y2 / stride), size[0]), top + 1)
        for row in range(top, bottom):
            for column in range(left, right):
                area = (right - left) * (bottom - top)
                weight[row, column] = max(weight[row, column].item(), 1 / area)
    return weight


def test_valid_cells_are_those_that_begin_inside():
    valid = valid_cells(torch.tensor([[64, 64], [40, 57], [1, 8]]), (8, 8), 8)
    assert valid.shape == (3, 1, 8, 8) and valid.dtype == torch.bool
    assert valid.flatten(1).sum(1).tolist() == [64, 5 * 8, 1]
    assert valid[1, 0, 4].all() and not valid[1, 0, 5].any()


def test_hand_worked_weight():
    # A box of 2 x 2 cells, and one of a single cell inside it.
    weight = foreground_weight([torch.tensor([[8.0, 0.0, 24.0, 16.0], [8.0, 8.0, 10.0, 9.0]])], (3, 4), 8)
    assert weight.shape == (1, 1, 3, 4)
    assert weight[0, 0].tolist() == [[0, 0.25, 0.25, 0], [0, 1, 0.25, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("stride", [8, 16, 128])
def test_weight_equals_the_loop(stride: int, generator: torch.Generator):
    corners = 130 * torch.rand(3, 9, 2, generator=generator) - 5
    sides = 60 * torch.rand(3, 9, 2, generator=generator) ** 3
    boxes = torch.cat([corners, corners + sides], 2)
    boxes = [boxes[0], boxes[1, :0], boxes[2, :4]]
    size = (math.ceil(96 / stride), math.ceil(128 / stride))
    weight = foreground_weight(boxes, size, stride)
    for found, one in zip(weight, boxes, strict=True):
        torch.testing.assert_close(found[0], slow_weight(one.tolist(), size, stride))


def test_parts_of_many_boxes_give_the_same_weight(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator):
    corners = 100 * torch.rand(2, 21, 2, generator=generator)
    boxes = list(torch.cat([corners, corners + 30 * torch.rand(2, 21, 2, generator=generator)], 2))
    whole = foreground_weight(boxes, (16, 16), 8)
    monkeypatch.setattr(geometry, "_CHUNK", 2 * 256 * 4)  # four boxes at once: the last part holds one
    assert torch.equal(foreground_weight(boxes, (16, 16), 8), whole)


@pytest.mark.parametrize(
    "box",
    [
        [10.0, 10.0, 10.0, 10.0],
        [11.0, 3.0, 11.5, 3.5],
        [63.9, 63.9, 64.0, 64.0],
        [70.0, 70.0, 80.0, 80.0],
        [-9.0, -9.0, -1.0, -1.0],
    ],
)
def test_a_tiny_box_covers_one_cell(box: list[float]):
    weight = foreground_weight([torch.tensor([box])], (8, 8), 8)
    assert (weight == 1).sum() == 1 and weight.sum() == 1


def test_no_box_no_weight():
    assert foreground_weight([torch.zeros(0, 4), torch.zeros(0, 4)], (4, 5), 8).shape == (2, 1, 4, 5)
    assert not foreground_weight([torch.zeros(0, 4)], (4, 5), 8).any()
