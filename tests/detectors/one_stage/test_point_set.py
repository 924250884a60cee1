"""Boxes from points: hand-worked values, loops over Python numbers, and gradients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor

from detkds.detectors.one_stage.point_set import (
    Conversion,
    PointsToBoxes,
    minmax_boxes,
    moment_boxes,
    partial_minmax_boxes,
    scale_gradient,
)


def _minmax(points: list[list[float]]) -> list[float]:
    xs, ys = zip(*points, strict=True)
    return [min(xs), min(ys), max(xs), max(ys)]


def _partial(points: list[list[float]]) -> list[float]:
    return _minmax(points[:4])


def _moment(points: list[list[float]]) -> list[float]:
    xs, ys = zip(*points, strict=True)
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    half_width, half_height = statistics.stdev(xs) * math.exp(0.3), statistics.stdev(ys) * math.exp(-0.2)
    return [x - half_width, y - half_height, x + half_width, y + half_height]


def _moment_boxes(points: Tensor) -> Tensor:
    return moment_boxes(points, torch.tensor([0.3, -0.2], dtype=points.dtype))


@pytest.mark.parametrize(
    ("convert", "slow"), [(minmax_boxes, _minmax), (partial_minmax_boxes, _partial), (_moment_boxes, _moment)]
)
def test_equals_a_loop(
    convert: Callable[[Tensor], Tensor], slow: Callable[[list[list[float]]], list[float]], generator: torch.Generator
) -> None:
    points = torch.randn(2, 5, 9, 2, generator=generator, dtype=torch.float64)
    boxes = convert(points)
    assert boxes.shape == (2, 5, 4)
    expected = torch.tensor([[slow(one) for one in image] for image in points.tolist()], dtype=torch.float64)
    assert torch.allclose(boxes, expected, rtol=1e-12)


def test_by_hand() -> None:
    points = torch.tensor([[1.0, 10], [3, 10], [1, 20], [3, 20], [2, 45]])
    assert minmax_boxes(points).tolist() == [1, 10, 3, 45]
    assert partial_minmax_boxes(points).tolist() == [1, 10, 3, 20]
    # x: mean 2, squared deviations 1 1 1 1 0, variance 4 / 4 = 1; twice as wide by the transfer
    # y: mean 21, squared deviations 121 121 1 1 576, variance 820 / 4 = 205
    half = math.sqrt(205)
    expected = torch.tensor([2 - 2, 21 - half, 2 + 2, 21 + half])
    assert torch.allclose(moment_boxes(points, torch.tensor([math.log(2), 0.0])), expected)


def test_moment_gradient(generator: torch.Generator) -> None:
    points = torch.randn(3, 9, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    transfer = torch.tensor([0.4, -0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(moment_boxes, (points, transfer))


def test_gradient_is_finite_where_all_points_are_equal() -> None:
    points = torch.full((1, 9, 2), 0.5, requires_grad=True)
    boxes = PointsToBoxes("moment")(points)
    assert boxes.tolist() == [[0.5] * 4]
    (boxes * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    # the deviation has no gradient there, the mean has one ninth on each point: 1 + 3 along x, 2 + 4 along y
    assert points.grad is not None and torch.allclose(points.grad, torch.tensor([4.0, 6.0]) / 9)


def test_conversions_by_name(generator: torch.Generator) -> None:
    points = torch.randn(4, 9, 2, generator=generator)
    functions = {
        "moment": lambda points: moment_boxes(points, torch.zeros(2)),
        "minmax": minmax_boxes,
        "partial_minmax": partial_minmax_boxes,
    }
    assert set(functions) == set(get_args(Conversion))
    for name, function in functions.items():
        module = PointsToBoxes(name)
        assert torch.equal(module(points), function(points))
        assert len(list(module.parameters())) == (name == "moment")


def test_transfer_learns_at_a_hundredth(generator: torch.Generator) -> None:
    points = torch.randn(4, 9, 2, generator=generator)
    module = PointsToBoxes("moment")
    free = torch.zeros(2, requires_grad=True)
    module(points)[:, 2:].sum().backward()
    moment_boxes(points, free)[:, 2:].sum().backward()
    assert module.transfer is not None and module.transfer.grad is not None and free.grad is not None
    assert free.grad.abs().min() > 0
    assert torch.allclose(module.transfer.grad, free.grad / 100)


def test_scaled_gradient_leaves_the_numbers(generator: torch.Generator) -> None:
    tensor = torch.randn(1000, generator=generator, requires_grad=True)
    scaled = scale_gradient(tensor, 0.1)
    assert torch.equal(scaled, tensor)
    scaled.sum().backward()
    assert tensor.grad is not None and torch.allclose(tensor.grad, torch.tensor(0.1))
