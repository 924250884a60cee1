"""Half precision is widened, everything else stays."""

from __future__ import annotations

import torch

from detkds.precision import full_precision


def test_full_precision_raises_half_types_only() -> None:
    assert full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert full_precision(torch.zeros(1, dtype=torch.float16)).dtype == torch.float32
    assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
