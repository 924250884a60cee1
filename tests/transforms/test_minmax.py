from __future__ import annotations

import pytest
import torch

from detkds.structures import Pair
from detkds.transforms.minmax import MinMax


def test_by_hand() -> None:
    """Two samples (0, 1, 4) and (10, 12, 14): each stretched by its own extremes, or both by 0 and 14."""
    tensor = torch.tensor([[0.0, 1.0, 4.0], [10.0, 12.0, 14.0]]).view(2, 3, 1, 1)
    result = MinMax()(Pair(tensor, tensor)).student.flatten(1)
    torch.testing.assert_close(result, torch.tensor([[0, 0.25, 1], [0, 0.5, 1]]), atol=1e-5, rtol=0)
    result = MinMax("batch")(Pair(tensor, tensor)).student.flatten(1)
    torch.testing.assert_close(result, tensor.flatten(1) / 14, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 4, 2, 5, 6), (7, 4)])
def test_fills_the_unit_interval(scope: str, shape: tuple[int, ...], generator: torch.Generator) -> None:
    tensor = 100 * torch.randn(shape, generator=generator)
    result = MinMax(scope)(Pair(tensor, tensor)).student  # type: ignore[arg-type]
    per = result.flatten(1) if scope == "sample" else result.view(1, -1)
    assert per.amin(1).eq(0).all()
    torch.testing.assert_close(per.amax(1), torch.ones(len(per)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [0.0, -3.0, 1e4])
def test_constant_map_becomes_zero(value: float) -> None:
    tensor = torch.full((2, 3, 4, 4), value)
    assert MinMax()(Pair(tensor, tensor)).student.abs().max() == 0
