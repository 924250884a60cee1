from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy

from detkds.distances.kl import KullbackLeibler
from detkds.structures import Pair


def test_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln 3/2 + 1/4 ln 1/2."""
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    scores = Pair(torch.zeros(1, 2), torch.tensor([[math.log(3), 0.0]]), kind="logits")
    assert KullbackLeibler()(scores).item() == pytest.approx(expected)
    shares = Pair(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.75, 0.25]]), kind="probability")
    assert KullbackLeibler()(shares).item() == pytest.approx(expected, rel=1e-5)


def test_direction_is_from_the_teacher() -> None:
    """A student that misses what the teacher sees costs more than one that sees too much."""
    sure, unsure = torch.tensor([[8.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    assert KullbackLeibler()(Pair(sure, unsure, kind="logits")) > 3
    assert KullbackLeibler()(Pair(unsure, sure, kind="logits")) < 0.7


@pytest.mark.parametrize("tau", [1.0, 2.0, 10.0])
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 4, 3), (2, 5, 2, 4, 3)])
def test_matches_torch(tau: float, shape: tuple[int, ...], generator: torch.Generator) -> None:
    student, teacher = 3 * torch.randn(2, *shape, generator=generator)

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.movedim(1, -1).reshape(-1, shape[1]) / tau).log_softmax(-1)

    expected = tau**2 * F.kl_div(rows(student), rows(teacher), log_target=True, reduction="batchmean")
    torch.testing.assert_close(KullbackLeibler(tau)(Pair(student, teacher, kind="logits")), expected)


def test_matches_scipy_on_probabilities(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 7, 5, generator=generator).softmax(-1)
    expected = sum(entropy(p.numpy(), q.numpy()) for p, q in zip(teacher, student, strict=True)) / 7
    assert KullbackLeibler()(Pair(student, teacher, kind="probability")).item() == pytest.approx(expected, rel=1e-5)


def test_probabilities_that_do_not_sum_to_one_have_their_lowest_at_equality() -> None:
    """p ln(p/q) alone would fall below 0 as q grows: 0.2 ln(0.2/0.9) = -0.3; with q - p it is 0.4."""
    pair = Pair(torch.tensor([[0.9]]), torch.tensor([[0.2]]), kind="probability")
    assert KullbackLeibler()(pair).item() == pytest.approx(0.2 * math.log(0.2 / 0.9) + 0.7, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_scores_are_finite(dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    value = KullbackLeibler()(Pair(student, student.detach().flip(1), kind="logits"))
    value.backward()
    assert value.isfinite() and value > 1e3
    assert student.grad is not None and student.grad.isfinite().all()


def test_extreme_probabilities_are_finite() -> None:
    student = torch.tensor([[1.0, 0.0]], requires_grad=True)
    value = KullbackLeibler()(Pair(student, torch.tensor([[0.0, 1.0]]), kind="probability"))
    value.backward()
    assert value.item() == pytest.approx(-math.log(1e-8), rel=1e-3)
    assert student.grad is not None and student.grad.isfinite().all()


def test_mean_divides_by_the_length_of_the_rows(generator: torch.Generator) -> None:
    for kind in ("logits", "probability"):
        student, teacher = torch.randn(2, 6, 5, generator=generator).softmax(-1)
        pair = Pair(student, teacher, kind=kind)
        torch.testing.assert_close(KullbackLeibler(2, mean=True)(pair), KullbackLeibler(2)(pair) / 5)
