from __future__ import annotations

import pytest
import torch

from detkds.structures import Kind, Pair
from detkds.transforms.reshape import Reshape


@pytest.mark.parametrize(
    ("axis", "kind", "shape", "expected"),
    [
        ("N", "feature", (2, 3, 4, 5), (2, 60)),
        ("C", "feature", (2, 3, 4, 5), (6, 20)),
        ("N", "logits", (2, 3, 6, 4, 5), (2, 360)),
        ("C", "logits", (2, 3, 6, 4, 5), (36, 20)),
        ("N", "logits", (7, 3), (1, 21)),
        ("C", "logits", (7, 3), (3, 7)),
        ("K", "feature", (2, 3, 4, 5), (3, 40)),
        ("K", "logits", (2, 3, 6, 4, 5), (3, 240)),
        ("K", "logits", (7, 3), (3, 7)),
    ],
)
def test_shapes_and_weights(axis: str, kind: Kind, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """A weight that equals the element's position number must lie at that element afterwards."""
    position = torch.arange(1.0, shape[0] * torch.tensor(shape[2:]).prod().item() + 1).view(shape[0], 1, *shape[2:])
    tensor = position.expand(shape)
    result = Reshape(axis)(Pair(tensor, -tensor, kind=kind, weight=position))  # type: ignore[arg-type]
    assert result.student.shape == expected
    assert torch.equal(result.teacher, -result.student)
    assert result.weight is not None
    assert torch.equal(result.weight, result.student)
    assert result.kind == "logits"


def test_rows_of_channels_by_hand() -> None:
    """Each row of reshape(C) holds the positions of one channel of one image."""
    tensor = torch.arange(8.0).view(1, 2, 2, 2)
    assert Reshape("C")(Pair(tensor, tensor)).student.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    dense = torch.arange(8.0).view(1, 2, 2, 1, 2)
    assert Reshape("C")(Pair(dense, dense, kind="logits")).student.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_no_weight_stays_none() -> None:
    tensor = torch.zeros(2, 3, 4, 5)
    assert Reshape("N")(Pair(tensor, tensor)).weight is None


def test_rows_of_classes_leave_out_what_counts_nothing() -> None:
    tensor = torch.arange(12.0).view(2, 3, 1, 1, 2)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.0]).view(2, 1, 1, 1, 2)
    result = Reshape("K")(Pair(tensor, -tensor, kind="probability", weight=weight))
    assert result.student.tolist() == [[1, 6], [3, 8], [5, 10]] and torch.equal(result.teacher, -result.student)
    assert result.weight is not None and result.weight.tolist() == [[1, 2]] * 3
    assert result.kind == "probability"
