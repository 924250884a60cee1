"""The distance of normal distributions: a value by hand, and every number in a loop."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from detkds.distances.gaussian import GaussianWasserstein
from detkds.structures import Pair


def test_by_hand():
    student = torch.tensor([1.0, 3.0, 5.0, 7.0]).view(1, 1, 2, 2)  # mean 4, variance 20/3
    teacher = torch.tensor([2.0, 2.0, 2.0, 2.0]).view(1, 1, 2, 2)  # mean 2, variance 0
    deviations = (math.sqrt(20 / 3 + 1e-5) - math.sqrt(1e-5)) ** 2
    found = GaussianWasserstein(ratio=3.0)(Pair(student, teacher)).item()
    assert found == pytest.approx(3 * 4 + deviations, rel=1e-5)


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_against_a_loop(grid: int, generator: torch.Generator):
    student, teacher = (torch.randn(2, 3, 5, 7, generator=generator) for _ in range(2))
    keep = (torch.rand(2, 1, 5, 7, generator=generator) > 0.2).float()
    for weight in (None, keep):
        total = 0.0
        for image in range(2):
            for channel in range(3):
                for row in range(grid):
                    for column in range(grid):
                        rows = range(row * 5 // grid, math.ceil((row + 1) * 5 / grid))
                        columns = range(column * 7 // grid, math.ceil((column + 1) * 7 / grid))
                        cells = [(i, j) for i in rows for j in columns if weight is None or keep[image, 0, i, j]]
                        numbers = [[side[image, channel, i, j].item() for i, j in cells] for side in (student, teacher)]
                        if cells:
                            means = [statistics.fmean(one) for one in numbers]
                            spreads = [statistics.variance(one) if len(one) > 1 else 0.0 for one in numbers]
                            roots = [math.sqrt(one + 1e-5) for one in spreads]
                            total += 2 * (means[0] - means[1]) ** 2 + (roots[0] - roots[1]) ** 2
        pair = Pair(student, teacher, weight=weight)
        expected = total / (2 * grid**2)
        assert GaussianWasserstein(grid=grid, ratio=2.0)(pair).item() == pytest.approx(expected, rel=1e-4)


def test_positions_may_change_places():
    maps = torch.arange(12.0).view(1, 1, 3, 4)
    assert GaussianWasserstein()(Pair(maps, maps.flip(2, 3))).item() == pytest.approx(0, abs=1e-6)
    assert GaussianWasserstein(grid=2)(Pair(maps, maps.flip(2, 3))).item() > 1


def test_only_maps_have_parts():
    with pytest.raises(ValueError, match=r"expected maps of shape \(N, C, H, W\), got \(3, 4\)"):
        GaussianWasserstein()(Pair(torch.zeros(3, 4), torch.zeros(3, 4)))
