from __future__ import annotations

import itertools

import pytest
import torch

from detkds.distances.elementwise import L1, L2, SmoothL1
from detkds.distances.reduction import Per
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


def test_per_position_and_image_by_hand() -> None:
    """Squares 0.25, 0, 4 and 16 in two rows; row weights 3 and 1, or 1 of the first element and 2 of the last."""
    pair = Pair(STUDENT, TEACHER)
    assert L2(per="position")(pair).item() == pytest.approx((0.25 + 20) / 2)
    assert L1(per="image")(pair).item() == pytest.approx(6.5 / 2)
    rows = Pair(STUDENT, TEACHER, weight=torch.tensor([[3.0], [1.0]]))
    assert L2(per="position")(rows).item() == pytest.approx((3 * 0.25 + 20) / 4)
    assert SmoothL1(per="image")(rows).item() == pytest.approx((3 * 0.125 + 5) / 2)
    element = Pair(STUDENT, TEACHER, weight=torch.tensor([[1.0, 0], [0, 2.0]]))
    assert L2(per="position")(element).item() == pytest.approx((0.25 + 2 * 16) / 3)
    assert L2(per="image")(element).item() == pytest.approx((0.25 + 2 * 16) / 2)


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 5, 3, 4), (1, 1, 3, 4), (2, 1, 1, 1), None], ids=str)
def test_reductions_are_those_of_a_loop(shape: tuple[int, ...] | None, generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 2, 5, 3, 4, generator=generator)
    weight = None if shape is None else torch.rand(shape, generator=generator)
    full = torch.ones(2, 5, 3, 4) if weight is None else weight.expand(2, 5, 3, 4)
    total = elements = positions = 0.0
    for n, i, j in itertools.product(range(2), range(3), range(4)):
        positions += max(full[n, c, i, j].item() for c in range(5))
        for c in range(5):
            total += full[n, c, i, j].item() * abs(student[n, c, i, j] - teacher[n, c, i, j]).item()
            elements += full[n, c, i, j].item()
    expected: dict[Per, float] = {"element": total / elements, "position": total / positions, "image": total / 2}
    for per, value in expected.items():
        assert L1(per=per)(Pair(student, teacher, weight=weight)).item() == pytest.approx(value, rel=1e-5), per


@pytest.mark.parametrize("per", ["element", "position", "image"])
def test_nothing_and_no_weight_are_no_loss(per: Per) -> None:
    assert L2(per=per)(Pair(torch.zeros(0, 3, 2, 2), torch.zeros(0, 3, 2, 2))).item() == 0
    nowhere = Pair(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), weight=torch.zeros(2, 1, 2, 2))
    assert L2(per=per)(nowhere).item() == 0
