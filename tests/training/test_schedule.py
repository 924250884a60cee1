"""Learning rates by hand, and what carries weight decay."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from detkds.config import TrainConfig
from detkds.training.schedule import build_optimizer, lr_factor


def test_warm_up_is_linear_then_cosine_to_nothing():
    config = TrainConfig(warmup_steps=4)
    factors = [lr_factor(step, 24, config) for step in range(25)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[14] == pytest.approx(0.5) and factors[24] == pytest.approx(0)
    assert factors[9] == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert all(later < sooner for sooner, later in itertools.pairwise(factors[4:]))


def test_steps_at_the_milestones():
    config = TrainConfig(warmup_steps=0, schedule="step", milestones=(0.5, 0.75), step_factor=0.1)
    factors = [lr_factor(step, 8, config) for step in range(8)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_short_training_warms_up_for_half_of_it():
    config = TrainConfig(warmup_steps=500)
    assert [lr_factor(step, 4, config) for step in range(3)] == [0.5, 1.0, 1.0]
    assert lr_factor(0, 1, config) == 1.0


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_vectors_carry_no_weight_decay(name: str):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    optimizer = build_optimizer(model.parameters(), TrainConfig(optimizer=name, lr=0.1, weight_decay=0.2))  # type: ignore[arg-type]
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.2 and plain["weight_decay"] == 0
    assert [id(p) for p in decayed["params"]] == [id(model[0].weight), id(model[2].weight)]
    assert [id(p) for p in plain["params"]] == [id(model[0].bias), id(model[1].weight), id(model[1].bias)]
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)


def test_momentum_reaches_the_optimizer():
    parameters = [nn.Parameter(torch.ones(2, 2))]
    assert build_optimizer(parameters, TrainConfig(momentum=0.8)).param_groups[0]["momentum"] == 0.8
    assert build_optimizer(parameters, TrainConfig(optimizer="adamw", momentum=0.8)).param_groups[0]["betas"] == (
        0.8,
        0.999,
    )
