"""What weighted sums are divided by."""

from __future__ import annotations

import pytest
import torch

from detkds.registry import DISTANCES
from detkds.structures import Pair


@pytest.mark.parametrize("name", ["l1", "kl", "bce", "bkd"])
@pytest.mark.parametrize("weighted", [False, True])
def test_divisor_stands_in_place_of_the_sum_of_weights(name: str, weighted: bool, generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 2, 3, 2, 4, 5, generator=generator)
    weight = torch.rand(2, 1, 2, 4, 5, generator=generator) if weighted else None
    mean, total = (
        DISTANCES.build(name)(Pair(student, teacher, kind="logits", weight=weight, divisor=divisor)).item()
        for divisor in (None, torch.tensor(7.0))
    )
    counted = 80 if weight is None else weight.sum().item()
    assert total == pytest.approx(mean * counted * (3 if name == "l1" else 1) / 7, rel=1e-5)


def test_nothing_over_a_divisor_is_nothing() -> None:
    pair = Pair(torch.zeros(0, 3), torch.zeros(0, 3), kind="logits", weight=torch.zeros(0, 1), divisor=1)
    assert DISTANCES.build("kl")(pair) == 0 and DISTANCES.build("l1")(pair) == 0


@pytest.mark.parametrize("distance", ["kl(tau=2)", "l2", "l2(per=position)", "cosine", "bce"])
def test_where_nothing_counts_the_gradient_is_zero_however_strong_the_term(distance: str) -> None:
    student = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pair = Pair(student, torch.ones(4, 3), kind="logits", weight=torch.zeros(4, 1))
    (1000 * DISTANCES.build(distance)(pair)).backward()
    assert student.grad is not None and torch.equal(student.grad, torch.zeros(4, 3))
