from __future__ import annotations

import pytest
import torch

from detkds.distances.elementwise import L1, L2, SmoothL1
from detkds.structures import Pair

STUDENT, TEACHER = torch.tensor([[0.0, 1.0], [2.0, 5.0]]), torch.tensor([[0.5, 1.0], [4.0, 1.0]])


def test_by_hand() -> None:
    """Differences 0.5, 0, 2 and 4."""
    pair = Pair(STUDENT, TEACHER)
    assert L1()(pair).item() == pytest.approx(6.5 / 4)
    assert L2()(pair).item() == pytest.approx(20.25 / 4)
    assert SmoothL1()(pair).item() == pytest.approx((0.125 + 0 + 1.5 + 3.5) / 4)
    assert SmoothL1(beta=4)(pair).item() == pytest.approx((0.25 / 8 + 0 + 4 / 8 + 2) / 4)


def test_weighted_by_hand() -> None:
    """Row weights 3 and 1, two columns each: sum of w is 8."""
    pair = Pair(STUDENT, TEACHER, weight=torch.tensor([[3.0], [1.0]]))
    assert L1()(pair).item() == pytest.approx((3 * 0.5 + 2 + 4) / 8)
    assert L2()(pair).item() == pytest.approx((3 * 0.25 + 4 + 16) / 8)
    element = Pair(STUDENT, TEACHER, weight=torch.tensor([[1.0, 0], [0, 2.0]]))
    assert L1()(element).item() == pytest.approx((0.5 + 2 * 4) / 3)
