"""The precision that statistics, box arithmetic and losses are computed in."""

from __future__ import annotations

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it came in half precision (under autocast), whose sums lose digits."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
