from __future__ import annotations

import math

import pytest
import torch

from detkds.distances.ssim import StructuralSimilarity
from detkds.errors import UserError
from detkds.registry import DISTANCES
from detkds.structures import Pair


def loop(student: torch.Tensor, teacher: torch.Tensor, window: int = 11, sigma: float = 1.5) -> torch.Tensor:
    """(1 - SSIM) / 2 of each cell, every sum written out, in float64."""
    student, teacher = student.double(), teacher.double()
    images, channels, height, width = student.shape
    largest = min(height, width) - (1 - min(height, width) % 2)
    reach = min(window, largest) // 2
    result = torch.zeros_like(student)
    for n in range(images):
        extent = max((teacher[n].max() - teacher[n].min()).item(), 1e-3)
        c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    cells = [
                        (v, u)
                        for v in range(max(y - reach, 0), min(y + reach, height - 1) + 1)
                        for u in range(max(x - reach, 0), min(x + reach, width - 1) + 1)
                    ]
                    g = [math.exp(-((v - y) ** 2 + (u - x) ** 2) / (2 * sigma**2)) for v, u in cells]
                    g = [weight / sum(g) for weight in g]
                    s = [student[n, c, v, u].item() for v, u in cells]
                    t = [teacher[n, c, v, u].item() for v, u in cells]
                    ms = sum(w * a for w, a in zip(g, s, strict=True))
                    mt = sum(w * a for w, a in zip(g, t, strict=True))
                    vs = sum(w * (a - ms) ** 2 for w, a in zip(g, s, strict=True))
                    vt = sum(w * (a - mt) ** 2 for w, a in zip(g, t, strict=True))
                    cov = sum(w * (a - ms) * (b - mt) for w, a, b in zip(g, s, t, strict=True))
                    ssim = (2 * ms * mt + c1) * (2 * cov + c2) / ((ms**2 + mt**2 + c1) * (vs + vt + c2))
                    result[n, c, y, x] = (1 - ssim) / 2
    return result


@pytest.mark.parametrize("size", [(13, 12), (7, 6), (1, 5), (2, 2), (3, 70), (66, 12)])
def test_matches_the_loop(size: tuple[int, int], generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 1, 2, *size, generator=generator)
    value = StructuralSimilarity()(Pair(student + teacher, teacher))
    assert value.item() == pytest.approx(loop(student + teacher, teacher).mean().item(), rel=1e-4)


def test_matches_the_loop_with_other_arguments(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 1, 1, 8, 8, generator=generator)
    value = StructuralSimilarity(window=5, sigma=0.8)(Pair(student, teacher))
    assert value.item() == pytest.approx(loop(student, teacher, 5, 0.8).mean().item(), rel=1e-4)


def test_positions_are_weighted(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 1, 2, 6, 7, generator=generator)
    weight = torch.rand(1, 1, 6, 7, generator=generator)
    expected = (loop(student, teacher) * weight).sum() / (2 * weight.sum())
    value = StructuralSimilarity()(Pair(student, teacher, weight=weight))
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_constant_maps_by_hand() -> None:
    """Nothing varies, so that the means alone count: L = 0.001 at least, (2 * 0.02 + C1) / (0.05 + C1), C1 = 1e-10."""
    pair = Pair(torch.full((1, 1, 5, 5), 0.1), torch.full((1, 1, 5, 5), 0.2))
    assert StructuralSimilarity()(pair).item() == pytest.approx((1 - 0.04 / 0.05) / 2, rel=1e-4)


def test_stays_in_the_unit_interval(generator: torch.Generator) -> None:
    teacher = torch.randn(2, 3, 9, 9, generator=generator)
    for student in (-teacher, torch.randn(2, 3, 9, 9, generator=generator), 100 * teacher, teacher - 5):
        assert 0 <= StructuralSimilarity()(Pair(student, teacher)) <= 1


def test_level_far_above_the_spread_keeps_its_digits(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 1, 2, 8, 8, generator=generator) + 1000
    value = StructuralSimilarity()(Pair(student, teacher))
    assert value.item() == pytest.approx(loop(student, teacher).mean().item(), rel=1e-3)


def test_each_sample_has_its_own_range(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 2, 2, 6, 6, generator=generator)
    factor = torch.tensor([1.0, 50.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(
        StructuralSimilarity()(Pair(student * factor, teacher * factor)), StructuralSimilarity()(Pair(student, teacher))
    )


def test_runs_in_float32_under_autocast(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 1, 2, 8, 8, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        value = StructuralSimilarity()(Pair(student, teacher))
    torch.testing.assert_close(value, StructuralSimilarity()(Pair(student, teacher)), rtol=1e-6, atol=0)


def test_refuses_rows_and_even_windows() -> None:
    with pytest.raises(ValueError, match=r"expected maps of shape \(N, C, H, W\), got \(4, 3\)"):
        StructuralSimilarity()(Pair(torch.ones(4, 3), torch.ones(4, 3)))
    with pytest.raises(UserError, match="window: expected an odd number, got 8"):
        DISTANCES.build("ssim(window=8)")
