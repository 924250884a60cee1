"""Random choice of the anchors and proposals that a two-stage loss is taken over."""

from __future__ import annotations

import torch
from torch import Tensor


class Sampler:
    """Draws per image up to ``size`` rows, at most ``share`` of them positive, as torchvision's balanced sampler does.

    Attributes:
        generator: where draws come from; None is torch's global generator. Students that share a generator's state
            draw alike.
    """

    def __init__(self, size: int, share: float) -> None:
        self.size = size
        self.share = share
        self.generator: torch.Generator | None = None

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks of the positives and of the negatives drawn; labels ``(M,)`` are >= 1, 0, or -1 (never drawn)."""
        chosen = [self._draw(image_labels) for image_labels in labels]
        return [positive for positive, _ in chosen], [negative for _, negative in chosen]

    def _draw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        positives, negatives = (labels >= 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
        most = min(len(positives), int(self.size * self.share))
        positive = self._mask(labels, positives, most)
        return positive, self._mask(labels, negatives, self.size - most)

    def _mask(self, labels: Tensor, candidates: Tensor, count: int) -> Tensor:
        where = labels.device if self.generator is None else self.generator.device
        order = torch.randperm(len(candidates), generator=self.generator, device=where)[:count]
        mask = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
        mask[candidates[order.to(labels.device)]] = True
        return mask
