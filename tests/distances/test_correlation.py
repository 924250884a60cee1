from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detkds.distances.correlation import Correlation
from detkds.errors import UserError
from detkds.registry import DISTANCES
from detkds.structures import Pair


def test_by_hand() -> None:
    """Column 1 rises in both (v = 1); column 2 falls where it should rise (v = -1): log2(2^2.02)."""
    student = torch.tensor([[0.0, 5.0], [1.0, 3.0], [2.0, 1.0]])
    teacher = torch.tensor([[1.0, 0.0], [3.0, 1.0], [5.0, 2.0]])
    assert Correlation()(Pair(student, teacher, kind="logits")).item() == pytest.approx(2.02, abs=1e-4)


@pytest.mark.parametrize("shape", [(40, 3), (2, 3, 2, 4, 5)])
def test_matches_numpy(shape: tuple[int, ...], generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, *shape, generator=generator)
    columns = [tensor.movedim(1, 0).flatten(1).double().numpy() for tensor in (student, teacher)]
    gaps = [abs(np.corrcoef(s, t)[0, 1] - 1) ** 2.02 for s, t in zip(*columns, strict=True)]
    value = Correlation()(Pair(student, teacher, kind="logits"))
    assert value.item() == pytest.approx(math.log2(sum(gaps)), abs=1e-4)


def test_whole_weights_repeat_rows(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 5, 3, generator=generator)
    times = torch.tensor([1, 2, 0, 3, 1])
    weighted = Correlation()(Pair(student, teacher, kind="logits", weight=times.float().view(5, 1)))
    repeated = Pair(student.repeat_interleave(times, 0), teacher.repeat_interleave(times, 0), kind="logits")
    torch.testing.assert_close(weighted, Correlation()(repeated), rtol=1e-4, atol=1e-4)


def test_single_row_is_zero_with_a_warning() -> None:
    student = torch.ones(1, 3, requires_grad=True)
    with pytest.warns(RuntimeWarning, match="one row has no correlation"):
        value = Correlation()(Pair(student, torch.zeros(1, 3), kind="logits"))
    value.backward()
    assert value == 0


def test_single_weighted_row_is_zero() -> None:
    student = torch.randn(4, 3, requires_grad=True)
    value = Correlation()(Pair(student, torch.ones(4, 3), kind="logits", weight=torch.eye(4)[:, :1]))
    value.backward()
    assert value == 0
    assert student.grad is not None and student.grad.isfinite().all()


def test_constant_columns_are_uncorrelated() -> None:
    """Three columns at v = 0: log2(3)."""
    student = torch.full((6, 3), 0.5, requires_grad=True)
    value = Correlation()(Pair(student, torch.randn(6, 3), kind="logits"))
    value.backward()
    assert value.item() == pytest.approx(math.log2(3), abs=1e-4)
    assert student.grad is not None and student.grad.isfinite().all()


def test_alpha_is_checked() -> None:
    with pytest.raises(UserError, match=r"alpha: expected a finite number > 0.5, got 0.4"):
        DISTANCES.build("correlation(alpha=0.4)")
