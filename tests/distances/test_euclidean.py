"""The length of a difference, by hand, and where it is 0."""

from __future__ import annotations

import pytest
import torch

from detkds.distances.euclidean import Euclidean
from detkds.structures import Pair


def test_by_hand():
    student, teacher = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]])
    assert Euclidean()(Pair(student, teacher)).item() == pytest.approx(26**0.5)
    assert Euclidean()(Pair(student, teacher, weight=torch.tensor([[4.0], [0.0]]))).item() == 10
    assert Euclidean()(Pair(torch.zeros(0, 3), torch.zeros(0, 3))).item() == 0


def test_equality_has_no_gradient():
    student = torch.ones(2, 3, requires_grad=True)
    Euclidean()(Pair(student, torch.ones(2, 3), weight=torch.zeros(2, 1))).backward()
    assert student.grad is not None and (student.grad == 0).all()
