"""Cross-entropies class by class: by hand, by loops, and what of them carries gradient."""

from __future__ import annotations

import math

import pytest
import torch

from detkds.distances.binary import BinaryCrossEntropy, BinaryDistillation
from detkds.errors import UserError
from detkds.registry import DISTANCES
from detkds.structures import Pair

LOG3 = math.log(3)


def test_bce_by_hand() -> None:
    """Teacher 3/4, student 1/2: ln 2 less the entropy of (3/4, 1/4); a second class where both say 1/4 adds nothing."""
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    pair = Pair(torch.tensor([[0.0, -LOG3]]), torch.tensor([[LOG3, -LOG3]]), kind="logits")
    assert BinaryCrossEntropy()(pair).item() == pytest.approx(math.log(2) - entropy)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_bkd_by_hand(beta: float) -> None:
    """Teacher 3/4, student 1/2: the cross-entropy is ln 2 and the probabilities are 1/4 apart."""
    pair = Pair(torch.tensor([[0.0, -LOG3]]), torch.tensor([[LOG3, -LOG3]]), kind="logits")
    assert BinaryDistillation(beta)(pair).item() == pytest.approx(0.25**beta * math.log(2))


@pytest.mark.parametrize("beta", [1.0, 1.5])
def test_matches_loops_over_positions_and_classes(beta: float, generator: torch.Generator) -> None:
    student, teacher = 2 * torch.randn(2, 2, 3, 2, 2, 3, generator=generator)
    weight = torch.rand(2, 1, 2, 2, 3, generator=generator)
    bce = bkd = 0.0
    for image in range(2):
        for position in range(12):
            share = weight[image].flatten()[position].item() / weight.sum().item()
            for label in range(3):
                q, p = (1 / (1 + math.exp(-x[image, label].flatten()[position].item())) for x in (student, teacher))
                cross = -p * math.log(q) - (1 - p) * math.log(1 - q)
                bce += share * (cross + p * math.log(p) + (1 - p) * math.log(1 - p))
                bkd += share * abs(p - q) ** beta * cross
    pair = Pair(student, teacher, kind="logits", weight=weight)
    assert BinaryCrossEntropy()(pair).item() == pytest.approx(bce, rel=1e-5)
    assert BinaryDistillation(beta)(pair).item() == pytest.approx(bkd, rel=1e-5)


def test_gradients_by_hand() -> None:
    """Of bce: q - p. Of bkd, where q < p: (p - q)(q - p) from the cross-entropy, -q (1 - q) times it from the gap."""
    student = torch.zeros(1, 1, requires_grad=True)
    pair = Pair(student, torch.tensor([[LOG3]]), kind="logits")
    assert torch.autograd.grad(BinaryCrossEntropy()(pair), student)[0].item() == pytest.approx(-0.25)
    expected = -0.25 * 0.25 - 0.25 * math.log(2)
    assert torch.autograd.grad(BinaryDistillation()(pair), student)[0].item() == pytest.approx(expected)


def test_beta_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="beta: expected a finite number >= 1"):
        DISTANCES.build("bkd(0.5)")
