from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from detkds.errors import UserError
from detkds.registry import TRANSFORMS
from detkds.structures import Pair
from detkds.transforms.mask import RandomMask


def masked(transform: RandomMask, seed: int = 0, images: int = 1) -> Pair:
    ones = torch.ones(images, 3, 100, 100)
    return transform(Pair(ones, 2 * ones, generator=torch.Generator().manual_seed(seed)))


def test_one_draw_serves_both_sides_and_all_channels() -> None:
    pair = masked(RandomMask())
    assert torch.equal(pair.teacher, 2 * pair.student)
    assert torch.equal(pair.student, pair.student[:, :1].expand_as(pair.student))
    assert set(pair.student.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("ratio", [0.2, 0.65])
def test_share_of_zeros(ratio: float) -> None:
    kept = int(masked(RandomMask(ratio=ratio), images=4).student[:, 0].sum())
    assert binomtest(kept, 40_000, 1 - ratio).pvalue > 1e-3
    assert abs(1 - kept / 40_000 - ratio) < 0.02


def test_images_are_masked_independently() -> None:
    first, second = masked(RandomMask(), images=2).student[:, 0]
    agreeing = int((first == second).sum())
    assert binomtest(agreeing, 10_000, 0.65**2 + 0.35**2).pvalue > 1e-3


def test_draws_follow_the_generator() -> None:
    assert torch.equal(masked(RandomMask(), 1).student, masked(RandomMask(), 1).student)
    assert not torch.equal(masked(RandomMask(), 1).student, masked(RandomMask(), 2).student)


def test_next_step_draws_anew() -> None:
    generator = torch.Generator().manual_seed(0)
    ones = torch.ones(1, 1, 20, 20)
    first, second = (RandomMask()(Pair(ones, ones, generator=generator)).student for _ in range(2))
    assert not torch.equal(first, second)


def test_unshared_draws_are_independent() -> None:
    pair = masked(RandomMask(shared=False))
    agreeing = int((pair.teacher == 2 * pair.student)[:, 0].sum())
    assert binomtest(agreeing, 10_000, 0.65**2 + 0.35**2).pvalue > 1e-3


def test_works_without_a_generator() -> None:
    with torch.random.fork_rng():
        ones = torch.ones(1, 1, 30, 30)
        pair = RandomMask()(Pair(ones, ones))
    assert 0 < pair.student.sum() < 900


def test_ratio_zero_keeps_everything() -> None:
    assert masked(RandomMask(ratio=0)).student.min() == 1


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1, "true"])
def test_refuses_ratio(ratio: float | str) -> None:
    with pytest.raises(UserError, match="ratio: expected"):
        TRANSFORMS.build(f"mask(ratio={ratio})")


@pytest.mark.gpu
def test_device_sees_the_draw_of_the_generators_device() -> None:
    ones = torch.ones(2, 3, 20, 20)
    here = RandomMask()(Pair(ones, ones, generator=torch.Generator().manual_seed(0))).student
    there = RandomMask()(Pair(ones.cuda(), ones.cuda(), generator=torch.Generator().manual_seed(0))).student
    assert torch.equal(there.cpu(), here)
