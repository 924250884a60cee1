from __future__ import annotations

import pytest
import torch

from detkds.structures import Pair
from detkds.transforms.decode import Decode


def test_puts_the_boxes_in_place() -> None:
    numbers = torch.zeros(3, 4)
    boxes = torch.tensor([[0.0, 0, 4, 4]]).expand(3, 4), torch.tensor([[1.0, 1, 5, 7]]).expand(3, 4)
    weight = torch.tensor([[1.0], [0.0], [2.0]])
    result = Decode()(Pair(numbers, numbers, kind="regression", weight=weight, factor=0.5, decoded=boxes))
    assert result.student is boxes[0] and result.teacher is boxes[1]
    assert (result.kind, result.factor, result.weight) == ("boxes", 0.5, weight)


def test_needs_decoded_boxes() -> None:
    with pytest.raises(ValueError, match="expected a pair that carries decoded boxes"):
        Decode()(Pair(torch.zeros(3, 4), torch.zeros(3, 4), kind="regression"))
