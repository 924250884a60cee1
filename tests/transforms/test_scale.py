from __future__ import annotations

import math

import pytest
import torch

from detkds.structures import Pair
from detkds.transforms.scale import Scale


def loop(feature: torch.Tensor, n: int, reduce: str) -> torch.Tensor:
    """Pool window by window."""
    images, channels, height, width = feature.shape
    result = torch.zeros(images, channels, math.ceil(height / n), math.ceil(width / n))
    for row in range(result.shape[2]):
        for column in range(result.shape[3]):
            window = feature[:, :, row * n : (row + 1) * n, column * n : (column + 1) * n].flatten(2)
            result[:, :, row, column] = window.amax(2) if reduce == "max" else window.mean(2)
    return result


@pytest.mark.parametrize("size", [(4, 8), (5, 7), (1, 3), (2, 2), (9, 10)])
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_matches_the_loop(size: tuple[int, int], n: int, pool: str, generator: torch.Generator) -> None:
    feature = torch.randn(2, 3, *size, generator=generator)
    torch.testing.assert_close(Scale(n, pool)(Pair(feature, -feature)).student, loop(feature, n, pool))  # type: ignore[arg-type]
    torch.testing.assert_close(Scale(n, pool)(Pair(feature, -feature)).teacher, loop(-feature, n, pool))  # type: ignore[arg-type]


def test_negative_cells_at_the_border_survive() -> None:
    """Three columns of -1, -2, -3: the second window holds the last column alone, not a zero."""
    feature = torch.tensor([[[[-1.0, -2.0, -3.0]]]])
    assert Scale(2)(Pair(feature, feature)).student.tolist() == [[[[-1.0, -3.0]]]]


def test_scale_one_is_the_identity() -> None:
    pair = Pair(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
    assert Scale(1)(pair) is pair


def test_weight_is_pooled_by_the_maximum() -> None:
    feature = torch.zeros(1, 2, 2, 3)
    weight = torch.tensor([[[[0.0, 0.2, 0.0], [0.5, 0.0, 0.0]]]])
    for pool in ("max", "avg"):
        result = Scale(2, pool)(Pair(feature, feature, weight=weight))  # type: ignore[arg-type]
        assert result.weight is not None
        assert result.weight.tolist() == [[[[0.5, 0.0]]]]


def test_broadcast_weight_stays_broadcastable() -> None:
    feature = torch.zeros(2, 3, 5, 7)
    result = Scale(2)(Pair(feature, feature, weight=torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)))
    assert result.weight is not None
    assert result.weight.expand_as(result.student).flatten(1).mean(1).tolist() == [1.0, 0.0]
