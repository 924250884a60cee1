"""The logarithm of the sum of differences, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from detkds.distances.logsum import LogSum
from detkds.structures import Pair


def test_by_hand():
    student, teacher = torch.tensor([[1.0, -2.0], [0.0, 4.0]]), torch.zeros(2, 2)
    assert LogSum(alpha=2.0)(Pair(student, teacher)).item() == pytest.approx(math.log(1 + 4 + 16), rel=1e-6)
    weight = torch.tensor([[1.0], [0.5]])
    assert LogSum()(Pair(student, teacher, weight=weight)).item() == pytest.approx(
        math.log(4 * (1 + 16 + 128) / 3), rel=1e-6
    )


def test_its_gradient_does_not_grow_with_the_differences():
    lengths = []
    for factor in (1.0, 10.0):
        student = (factor * torch.tensor([[1.0, 2.0]])).requires_grad_()
        LogSum()(Pair(student, torch.zeros(1, 2))).backward()
        lengths.append(factor * student.grad.norm().item())
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-5)
