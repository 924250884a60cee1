"""Losses and integral of GFL against hand-worked numbers and slow sums."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from detkds.detectors.one_stage.quality_focal import distribution_focal_loss, expected_value, quality_focal_loss


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_quality_focal_loss_by_hand() -> None:
    logits = torch.tensor([_logit(0.6), _logit(0.6), _logit(0.2), _logit(0.7)])
    quality = torch.tensor([0.0, 1.0, 0.5, 0.7])
    entropies = [-math.log(0.4), -math.log(0.6), -0.5 * math.log(0.8) - 0.5 * math.log(0.2)]
    expected = [0.36 * entropies[0], 0.16 * entropies[1], 0.09 * entropies[2], 0.0]  # |y - p|^2 times cross-entropy
    assert quality_focal_loss(logits, quality).tolist() == pytest.approx(expected, abs=1e-6)
    assert quality_focal_loss(logits, quality, beta=1.0)[2].item() == pytest.approx(0.3 * entropies[2], rel=1e-5)


def test_quality_focal_loss_of_hard_targets_is_the_focal_loss(generator: torch.Generator) -> None:
    logits = torch.randn(50, generator=generator) * 4
    hard = (torch.rand(50, generator=generator) > 0.5).float()
    assert torch.allclose(quality_focal_loss(logits, hard), sigmoid_focal_loss(logits, hard, alpha=-1, gamma=2))


def test_quality_focal_loss_stays_finite_at_large_logits() -> None:
    logits = torch.tensor([-1e4, 1e4, -1e4, 1e4], requires_grad=True)
    loss = quality_focal_loss(logits, torch.tensor([0.0, 0.0, 1.0, 0.5]))
    loss.sum().backward()
    assert logits.grad is not None and torch.isfinite(loss).all() and torch.isfinite(logits.grad).all()
    assert loss[0] == 0


def test_distribution_focal_loss_by_hand() -> None:
    shares = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    logits = shares.log() + 5  # a constant changes no softmax
    between = -0.75 * math.log(0.2) - 0.25 * math.log(0.3)
    last = -0.1 * math.log(0.3) - 0.9 * math.log(0.4)  # 3 and beyond are drawn to 2.9
    for target, expected in ((1.25, between), (2.0, -math.log(0.3)), (3.0, last), (40.0, last), (-1, -math.log(0.1))):
        assert distribution_focal_loss(logits, torch.tensor([target])).item() == pytest.approx(expected, rel=1e-5)


def test_distribution_focal_loss_is_least_at_the_targets_shares() -> None:
    target = torch.tensor([1.3])
    best = distribution_focal_loss(torch.tensor([[-1e9, math.log(0.7), math.log(0.3), -1e9]]), target)
    assert best.item() == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3), rel=1e-5)
    assert expected_value(torch.tensor([-1e9, math.log(0.7), math.log(0.3), -1e9])).item() == pytest.approx(1.3)
    for other in (0.6, 0.8):
        logits = torch.tensor([[-1e9, math.log(other), math.log(1 - other), -1e9]])
        assert distribution_focal_loss(logits, target) > best


def test_expected_value_by_hand_and_by_loop(generator: torch.Generator) -> None:
    assert expected_value(torch.tensor([0.1, 0.2, 0.3, 0.4]).log()).item() == pytest.approx(2.0)  # .2 + .6 + 1.2
    assert expected_value(torch.zeros(17)).item() == pytest.approx(8.0)
    logits = torch.randn(2, 3, 5, generator=generator)
    for row, found in zip(logits.flatten(0, 1).tolist(), expected_value(logits).flatten().tolist(), strict=True):
        powers = [math.exp(value) for value in row]
        assert found == pytest.approx(sum(k * power for k, power in enumerate(powers)) / sum(powers), rel=1e-5)


def test_gradients(generator: torch.Generator) -> None:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    quality = torch.rand(6, generator=generator, dtype=torch.float64)
    target = torch.tensor([0.2, 1.0, 2.7, 9.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda logits: quality_focal_loss(logits, quality), (draw(6),))
    assert torch.autograd.gradcheck(lambda logits: distribution_focal_loss(logits, target), (draw(4, 5),))
    assert torch.autograd.gradcheck(expected_value, (draw(2, 3, 5),))
