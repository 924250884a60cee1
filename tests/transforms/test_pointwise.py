from __future__ import annotations

import math

import pytest
import torch

from detkds.structures import Kind, Pair
from detkds.transforms.pointwise import Sigmoid, Square

TENSOR = torch.tensor([[0.0, math.log(3), -2.0, 1.0]])


@pytest.mark.parametrize(("kind", "expected"), [("logits", "probability"), ("regression", "sides")])
def test_sigmoid(kind: Kind, expected: Kind) -> None:
    result = Sigmoid()(Pair(TENSOR, -TENSOR, kind=kind))
    assert result.kind == expected
    assert result.student[0, :2].tolist() == pytest.approx([0.5, 0.75])
    torch.testing.assert_close(result.student + result.teacher, torch.ones(1, 4))


@pytest.mark.parametrize(("kind", "expected"), [("logits", "logits"), ("regression", "sides")])
def test_square(kind: Kind, expected: Kind) -> None:
    result = Square()(Pair(TENSOR, -TENSOR, kind=kind))
    assert result.kind == expected
    assert result.student[0, 2:].tolist() == [4.0, 1.0]
    assert torch.equal(result.student, result.teacher)
