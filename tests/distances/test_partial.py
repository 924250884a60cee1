"""The partial distance by hand."""

from __future__ import annotations

import pytest
import torch

from detkds.distances.partial import PartialL2
from detkds.structures import Pair


def partial(student: list[float], teacher: list[float], per: str = "image") -> float:
    sides = (torch.tensor(values).view(1, 1, 1, -1) for values in (student, teacher))
    return PartialL2(per)(Pair(*sides)).item()  # type: ignore[arg-type]


def test_by_hand() -> None:
    """The negative numbers -1 and -3 have the mean -2, so that the teacher's are 2, -1, -2."""
    teacher = [2.0, -1.0, -3.0]
    assert partial([0.5, -4.0, -2.5], teacher) == pytest.approx(1.5**2)  # both below the inactive side are free
    assert partial([2.0, 0.0, -1.5], teacher) == pytest.approx(1 + 0.5**2)  # both above it are not
    assert partial([2.0, 0.0, -1.5], teacher, "element") == pytest.approx((1 + 0.5**2) / 3)


def test_a_teacher_without_negative_numbers_is_imitated_everywhere_but_below_its_zeros() -> None:
    assert partial([-1.0, -1.0, 1.0], [1.0, 0.0, 0.0]) == pytest.approx(4 + 0 + 1)


def test_each_channel_has_a_margin_over_the_batch() -> None:
    teacher = torch.tensor([[-1.0, -10.0], [-3.0, -30.0]])[..., None, None]
    pair = Pair(torch.zeros_like(teacher).requires_grad_(), teacher)
    assert PartialL2("image")(pair).item() == pytest.approx((1 + 10**2 + 2**2 + 20**2) / 2)
