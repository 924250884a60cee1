"""The balanced sampler: equal to torchvision's draw for draw, and reproducible from a generator of its own."""

from __future__ import annotations

import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from detkds.detectors.two_stage.sampling import Sampler

LABELS = [torch.tensor([1, 0, 2, -1, 0, 0, 3, 0, 0, 0]), torch.tensor([0, 0, -1]), torch.tensor([], dtype=torch.int64)]


def test_equals_torchvisions_draws() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected = BalancedPositiveNegativeSampler(6, 0.34)(LABELS)
        torch.manual_seed(3)
        drawn = Sampler(6, 0.34)(LABELS)
    for ours, theirs in zip(drawn, expected, strict=True):
        assert all(torch.equal(a, b.bool()) for a, b in zip(ours, theirs, strict=True))


def test_own_generator_is_reproducible_and_leaves_the_global_one_alone() -> None:
    sampler = Sampler(4, 0.5)
    before = torch.random.get_rng_state()
    draws = []
    for seed in (1, 1, 2):
        sampler.generator = torch.Generator().manual_seed(seed)
        draws.append([torch.stack(sampler([LABELS[0]])[side]).tolist() for side in (0, 1)])
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_counts_and_ignored_rows() -> None:
    positive, negative = Sampler(6, 0.34)(LABELS)
    assert [int(mask.sum()) for mask in positive] == [2, 0, 0]
    assert [int(mask.sum()) for mask in negative] == [4, 2, 0]
    assert not positive[0][3] and not negative[0][3] and not negative[1][2]
