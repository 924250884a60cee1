"""The two losses and the integral of Generalized Focal Loss (Li et al. 2020, arXiv 2006.04388)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TARGET_MARGIN = 0.1
"""How far below the last bin a target is kept, so that it lies between two bins (the authors' code)."""


def quality_focal_loss(logits: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """Cross-entropy with a soft target y, times |y - sigmoid(logit)|^beta (section 3, equation 5).

    Shapes:  ``logits`` and ``quality`` in [0, 1] of one shape -> the same
    Range:   [0, inf); 0 where the score equals the quality only for qualities 0 and 1, but without gradient for all.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return entropy * (quality - logits.sigmoid()).abs().pow(beta)


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the two bins next to a target, by its nearness to each (section 3, equation 6).

    Args:
        logits: ``(R, bins)`` over the values 0, 1, ... bins - 1.
        target: ``(R,)`` values; those outside [0, bins - 1) are drawn to its ends.

    Returns:
        ``(R,)``, at least the entropy of the two shares.
    """
    target = target.clamp(0, logits.shape[-1] - 1 - TARGET_MARGIN)
    lower = target.long()
    upper_share = target - lower
    below = F.cross_entropy(logits, lower, reduction="none")
    above = F.cross_entropy(logits, lower + 1, reduction="none")
    return below * (1 - upper_share) + above * upper_share


def expected_value(logits: Tensor) -> Tensor:
    """The mean of the distribution over the values 0, 1, ... bins - 1 (equation 4): ``(..., bins)`` to ``(...)``."""
    values = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) * values).sum(-1)
