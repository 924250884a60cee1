from __future__ import annotations

import math

import pytest
import torch

from detkds.structures import Kind, Pair
from detkds.transforms.softmax import Softmax


def one_side(axis: str, tensor: torch.Tensor, kind: Kind) -> torch.Tensor:
    return Softmax(axis)(Pair(tensor, tensor, kind=kind)).student  # type: ignore[arg-type]


def test_by_hand() -> None:
    tensor = torch.tensor([[0.0, math.log(3)]])
    assert one_side("C", tensor, "logits").tolist() == [pytest.approx([0.25, 0.75])]
    assert one_side("N", tensor.t(), "logits").flatten().tolist() == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("axis", "kind", "shape", "dims"),
    [
        ("C", "logits", (2, 3, 2, 4, 5), (1,)),
        ("C", "logits", (6, 3), (1,)),
        ("N", "logits", (2, 3, 2, 4, 5), (0,)),
        ("N", "logits", (6, 3), (0,)),
        ("C", "regression", (2, 4, 2, 3, 5), (1,)),
        ("C", "regression", (6, 4), (1,)),
        ("N", "regression", (2, 4, 2, 3, 5), (2, 3, 4)),
        ("N", "regression", (6, 4), (0,)),
    ],
)
def test_sums_to_one_over(
    axis: str, kind: Kind, shape: tuple[int, ...], dims: tuple[int, ...], generator: torch.Generator
) -> None:
    tensor = torch.randn(shape, generator=generator)
    result = one_side(axis, tensor, kind)
    total = result.sum(dims)
    torch.testing.assert_close(total, torch.ones_like(total))
    weights = tensor.exp()
    torch.testing.assert_close(result, weights / weights.sum(dims, keepdim=True))


def test_kind_follows_the_knowledge() -> None:
    tensor = torch.zeros(2, 4)
    assert Softmax()(Pair(tensor, tensor, kind="logits")).kind == "probability"
    assert Softmax()(Pair(tensor, tensor, kind="regression")).kind == "sides"
