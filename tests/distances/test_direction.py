from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import pearsonr

from detkds.distances.direction import Cosine, Pearson
from detkds.distances.elementwise import L2, SmoothL1
from detkds.structures import Pair
from detkds.transforms.normalise import Normalize, NormalizeBatch


def features(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    student, teacher = torch.randn(2, 4, 16, 8, 8, generator=generator)
    return student + teacher, teacher


def test_by_hand() -> None:
    """(1, 0) and (1, 1) stand at 45 degrees; (1, 2, 3) and (3, 2, 1) fall against each other."""
    right = Pair(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]))
    assert Cosine()(right).item() == pytest.approx(1 - 0.5**0.5)
    against = Pair(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 2.0, 1.0]]))
    assert Pearson()(against).item() == pytest.approx(2)
    assert Cosine()(against).item() == pytest.approx(1 - 10 / 14)


def test_cosine_matches_torch(generator: torch.Generator) -> None:
    student, teacher = features(generator)
    expected = (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
    torch.testing.assert_close(Cosine()(Pair(student, teacher)), expected)


def test_pearson_matches_scipy(generator: torch.Generator) -> None:
    student, teacher = torch.randn(2, 2, 9, 2, 3, generator=generator)
    rows = [tensor.movedim(1, -1).reshape(-1, 9).double().numpy() for tensor in (student, teacher)]
    expected = sum(1 - pearsonr(s, t).statistic for s, t in zip(*rows, strict=True)) / 12
    assert Pearson()(Pair(student, teacher)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("distance", [Cosine(), Pearson()])
def test_factor_of_the_student_does_not_matter(distance: Cosine | Pearson, generator: torch.Generator) -> None:
    student, teacher = features(generator)
    factor = torch.rand(4, 1, 8, 8, generator=generator) + 0.1
    value = distance(Pair(student, teacher))
    torch.testing.assert_close(distance(Pair(factor * student, teacher)), value)
    torch.testing.assert_close(distance(Pair(student, 1e3 * teacher)), value)


def test_shift_of_a_row_matters_to_cosine_alone(generator: torch.Generator) -> None:
    student, teacher = features(generator)
    shift = torch.randn(4, 1, 8, 8, generator=generator)
    value = Pearson()(Pair(student, teacher))
    torch.testing.assert_close(Pearson()(Pair(student + shift, teacher)), value, rtol=1e-4, atol=1e-6)
    assert not torch.isclose(Cosine()(Pair(student + shift, teacher)), Cosine()(Pair(student, teacher)), rtol=1e-2)


@pytest.mark.parametrize("distance", [Cosine(), Pearson()])
def test_row_without_direction_counts_as_one_and_has_no_gradient(distance: Cosine | Pearson) -> None:
    student = torch.zeros(1, 5, requires_grad=True)
    value = distance(Pair(student, torch.arange(5.0).view(1, 5)))
    value.backward()
    assert value == 1
    assert student.grad is not None and student.grad.abs().max() == 0


@pytest.mark.parametrize("level", [0.1, 0.3, 0.7, 123.4])
def test_constant_rows_are_seen_through_rounding(level: float) -> None:
    """The mean of equal numbers need not be that number; what is left over must not count as a direction."""
    student, teacher = torch.full((50, 7), level), torch.full((50, 7), level / 3)
    assert Pearson()(Pair(student, teacher)) == 0


# --- what normalisations and distances are to each other ---


def test_batch_normalised_l2_is_two_minus_two_correlations(generator: torch.Generator) -> None:
    """PKD: mean (s - t)^2 = 2 (1 - mean_c rho_c), the correlation of each channel over batch and positions."""
    student, teacher = features(generator)
    value = L2()(NormalizeBatch()(Pair(student, teacher)))
    columns = [tensor.movedim(1, 0).flatten(1).double().numpy() for tensor in (student, teacher)]
    correlation = sum(pearsonr(s, t).statistic for s, t in zip(*columns, strict=True)) / 16
    assert value.item() == pytest.approx(2 * (1 - correlation), abs=1e-4)


def test_length_one_rows_make_l2_smooth_l1_and_cosine_one_loss(generator: torch.Generator) -> None:
    student, teacher = features(generator)
    pair = Normalize("C", "l2")(Pair(student, teacher))
    torch.testing.assert_close(L2()(pair), 2 / 16 * Cosine()(Pair(student, teacher)))
    torch.testing.assert_close(SmoothL1()(pair), L2()(pair) / 2)


def test_standardised_rows_make_l2_cosine_and_pearson_one_loss(generator: torch.Generator) -> None:
    student, teacher = features(generator)
    pair, plain = Normalize("C")(Pair(student, teacher)), Pearson()(Pair(student, teacher))
    for value in (Cosine()(pair), Pearson()(pair), L2()(pair) / 2):
        torch.testing.assert_close(value, plain, rtol=1e-5, atol=1e-6)
