"""Relations against loops, and how weights count in them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from detkds.distances.elementwise import L1
from detkds.structures import Pair
from detkds.transforms.relation import Gram, PairwiseDistances


def one_side(transform: Gram | PairwiseDistances, feature: torch.Tensor, weight: torch.Tensor | None = None):
    return transform(Pair(feature, feature, weight=weight)).student


def inner(one: torch.Tensor, other: torch.Tensor) -> float:
    return sum(a * b for a, b in zip(one.flatten().tolist(), other.flatten().tolist(), strict=True))


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(value**2 for value in row))
    return [value / length for value in row]


def test_gram_is_that_of_a_loop(generator: torch.Generator) -> None:
    feature = torch.randn(3, 4, 2, 5, generator=generator)
    channels = one_side(Gram("C"), feature)
    expected = [unit([inner(image[i], image[j]) for j in range(4)]) for image in feature for i in range(4)]
    torch.testing.assert_close(channels, torch.tensor(expected))
    images = one_side(Gram("N"), feature)
    expected = [unit([inner(feature[i], feature[j]) for j in range(3)]) for i in range(3)]
    torch.testing.assert_close(images, torch.tensor(expected))


def test_distances_are_those_of_a_loop(generator: torch.Generator) -> None:
    feature = torch.randn(4, 3, 2, 2, generator=generator)
    distances = {
        (i, j): math.sqrt(inner(feature[i] - feature[j], feature[i] - feature[j]))
        for i, j in itertools.product(range(4), repeat=2)
    }
    mean = sum(distances.values()) / 12
    pair = PairwiseDistances()(Pair(feature, 3 * feature))
    for (i, j), value in distances.items():
        assert pair.student[i, j].item() == pytest.approx(value / mean, rel=1e-5)
        assert pair.weight is not None and pair.weight[i, j].item() == float(i != j)
    assert L1()(pair).item() == pytest.approx(0, abs=1e-6)  # relative, so that the scale of a side does not matter


@pytest.mark.parametrize("transform", [Gram("C"), Gram("N"), PairwiseDistances()], ids=str)
def test_positions_of_weight_zero_are_not_seen(transform: Gram | PairwiseDistances, generator: torch.Generator) -> None:
    feature = torch.randn(3, 4, 2, 6, generator=generator)
    weight = torch.ones(3, 1, 2, 6)
    weight[..., 3:] = 0
    torch.testing.assert_close(one_side(transform, feature, weight), one_side(transform, feature[..., :3]))
    heavy = one_side(transform, feature, 4 * weight)  # of sums; normalised, only their ratios are left
    torch.testing.assert_close(heavy, one_side(transform, feature[..., :3]))


def test_one_map_has_no_distances() -> None:
    pair = PairwiseDistances()(Pair(torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)))
    assert L1()(pair).item() == 0
