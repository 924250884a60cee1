"""Numerical helpers that several transforms share."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """Half precision as float32, because statistics of half precision lose digits; others unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def safe_sqrt(tensor: Tensor) -> Tensor:
    """Square root whose gradient at 0 is 0 rather than infinite."""
    positive = tensor > 0
    return torch.where(positive, torch.where(positive, tensor, 1.0).sqrt(), 0.0)
