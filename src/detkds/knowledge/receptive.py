"""Feature maps seen through masks that learn, on the teacher's map, what its class scores are read from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from detkds.adapters.conv import convolution
from detkds.arguments import Count, piece
from detkds.knowledge.geometry import valid_cells
from detkds.knowledge.global_ import Global
from detkds.knowledge.responses import confidence
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, Kind, KnowledgeInput, Pair

_TOKEN_DEVIATION = 0.01
_PRIOR = 0.01  # the confidence first predicted everywhere
_DICE_EPS = 1e-12


@KNOWLEDGE.register("receptive")
@piece
class Receptive(Knowledge):
    """Both maps under the masks of receptive tokens, and what the tokens learn from. Made for ``l2`` alone.

    A token E_t is a vector of the teacher's channels, its mask m_t = sigmoid(E_t . T); in every image the tokens count
    by w = softmax(W mean_x conv(T)). Each level yields three pairs, of which ``l2`` makes

    - mean_n sum_t w_t mean_c (sum_x m_t^2 (S - T)^2 / sum_x m_t), with no gradient to the tokens: ``(N, C, H, W)``;
    - sum_x (p - q)^2 / sum_x p, the divisor at least 1, where p is the teacher's largest class probability in a cell
      and q = sigmoid(conv(sum_t w_t m_t T)): the tokens learn to keep what p is read from: ``(N, 1, H, W)``;
    - the mean Dice coefficient of two masks of an image, 2 sum_x m m' / (sum_x m^2 + sum_x m'^2), so that they learn to
      differ: its root against 0, ``(N, P, 1, 1)``.

    Args:
        tokens: per level.

    Source: MasKD (Huang et al., ICLR 2023), section 3, with the reductions of the authors' code.
    Differs: there the tokens are learned before the student, by the teacher's own losses on sum_t w_t m_t T in the
        place of the second pair, and later on the masks are multiplied by those of the student's map.
    """

    yields: ClassVar[Kind] = "feature"

    tokens: Count = 6

    @property
    def reads_responses(self) -> bool:
        return True

    def learned(self, channels: Mapping[str, int], generator: torch.Generator) -> nn.Module:
        """The tokens of every level, for maps of these channels."""
        return _Receptive(ReceptiveTokens(count, self.tokens, generator) for count in channels.values())

    def refusal(self, student: DetectorInfo, teacher: DetectorInfo) -> str | None:
        return Global(mask="score").refusal(student, teacher)


class _Receptive(nn.Module):
    def __init__(self, parts: Iterator[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, inputs: KnowledgeInput) -> Iterator[Pair]:
        """The pairs of the levels that the teacher's head answers on."""
        for (level, stride, student, teacher), part in zip(inputs.features(), self.parts, strict=True):
            if level in inputs.teacher.logits:
                valid = valid_cells(inputs.student.image_sizes, teacher.shape[-2:], stride).to(teacher)
                wanted = confidence(inputs.teacher, level).detach().amax(2)
                yield from part(student, teacher, wanted, valid)


class ReceptiveTokens(nn.Module):
    """The tokens of one level with their weights, and what predicts the teacher's confidence from them.

    Args:
        channels: of the teacher's map.
        count: of the tokens.
        generator: of the initial weights.
    """

    def __init__(self, channels: int, count: int, generator: torch.Generator) -> None:
        super().__init__()
        self.tokens = nn.Parameter(_TOKEN_DEVIATION * torch.randn(count, channels, generator=generator))
        self.gather = convolution(channels, channels, 3, generator)
        self.weigh = convolution(channels, count, 1, generator)
        self.predict = convolution(channels, 1, 1, generator)
        assert self.predict.bias is not None
        nn.init.constant_(self.predict.bias, -math.log(1 / _PRIOR - 1))

    def forward(self, student: Tensor, teacher: Tensor, wanted: Tensor, valid: Tensor) -> tuple[Pair, Pair, Pair]:
        """The three pairs: of maps ``(N, C, H, W)``, with confidence and valid cells ``(N, 1, H, W)``."""
        masks = torch.einsum("tc,nchw->nthw", self.tokens, teacher).sigmoid()
        shares = self.weigh(self.gather(teacher).mean((2, 3), keepdim=True)).softmax(1)  # (N, T, 1, 1)
        found = self.predict(teacher * (shares * masks).sum(1, keepdim=True)).sigmoid()
        overlap = dice(masks).clamp_min(_DICE_EPS).sqrt()[..., None, None]
        weight = _position_weight(masks.detach(), shares.detach())
        images, channels = teacher.shape[:2]
        return (
            Pair(student, teacher, weight=weight, divisor=float(images * channels)),
            Pair(found, wanted, weight=valid, divisor=(wanted * valid).sum().clamp_min(1)),
            Pair(overlap, torch.zeros_like(overlap)),
        )


def dice(masks: Tensor) -> Tensor:
    """``(N, T, H, W)`` to the coefficient of every two masks of an image, ``(N, T (T - 1) / 2)``."""
    products = masks.flatten(2) @ masks.flatten(2).transpose(1, 2)  # (N, T, T)
    squares = products.diagonal(dim1=1, dim2=2)
    first, second = torch.triu_indices(*products.shape[1:], offset=1, device=masks.device)
    return 2 * products[:, first, second] / (squares[:, first] + squares[:, second]).clamp_min(_DICE_EPS)


def _position_weight(masks: Tensor, shares: Tensor) -> Tensor:
    """sum_t w_t m_t^2 / sum_x m_t: ``(N, 1, H, W)``."""
    area = masks.sum((2, 3), keepdim=True).clamp_min(torch.finfo(masks.dtype).tiny)
    return (shares * masks.square() / area).sum(1, keepdim=True)
