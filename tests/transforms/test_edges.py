from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from detkds.distances.kl import KullbackLeibler
from detkds.distiller import check_pair
from detkds.errors import PairError
from detkds.policy import Policy, Term
from detkds.structures import DetectorInfo, FeatureSpec, Layout, Pair
from detkds.transforms.edges import Edges


def pair_of(student: torch.Tensor, teacher: torch.Tensor, **fields: object) -> Pair:
    numbers = torch.zeros(student.shape[0], 4, *student.shape[3:])
    return Pair(numbers, numbers, kind="regression", distributions=(student, teacher), **fields)  # type: ignore[arg-type]


def test_by_hand() -> None:
    """Two boxes of which the second counts three times; of its sides one differs, (3/4, 1/4) where (1/2, 1/2) is."""
    teacher = torch.zeros(2, 4, 2)
    teacher[1, 2, 0] = math.log(3)
    weight = torch.tensor([[1.0], [3.0]])
    side = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    mean = Edges()(pair_of(torch.zeros(2, 4, 2), teacher, weight=weight))
    assert mean.student.shape == (2, 2, 4) and mean.kind == "logits"
    assert KullbackLeibler()(mean).item() == pytest.approx(3 / 4 * side / 4)
    total = Edges()(pair_of(torch.zeros(2, 4, 2), teacher, weight=weight, divisor=torch.tensor(5.0)))
    assert KullbackLeibler()(total).item() == pytest.approx(3 * side / 4 / 5)


def test_pairs_without_distributions_are_refused_before_they_train() -> None:
    layout = Layout("dense", "sigmoid", 2, regression="sides", bins="0 to 4")
    policy = Policy([Term("localization", ["edges"], "kl")])
    described, others = (
        DetectorInfo({"p3": FeatureSpec(4, 8)}, replace(layout, bins=bins)) for bins in ("0 to 4", "0 to 8")
    )
    check_pair(policy, described, described)
    with pytest.raises(PairError, match="not distributions over the same bins: student 0 to 4, teacher 0 to 8"):
        check_pair(policy, described, others)


def test_detectors_without_distributions_are_refused() -> None:
    numbers = torch.zeros(2, 4)
    with pytest.raises(PairError, match="do not both predict sides as distributions"):
        Edges()(Pair(numbers, numbers, kind="regression"))
