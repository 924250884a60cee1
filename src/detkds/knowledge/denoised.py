"""The student's map as a noisy version of the teacher's, denoised by what was learned of the teacher's maps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from detkds.adapters.conv import BatchNorm, convolution
from detkds.arguments import Count, piece
from detkds.knowledge.per_level import PerLevel
from detkds.protocols import Knowledge
from detkds.registry import KNOWLEDGE
from detkds.structures import Kind, Pair

_TIMES = 1000
_FIRST_BETA, _LAST_BETA = 1e-4, 0.02


@KNOWLEDGE.register("denoised")
@piece
class Denoised(Knowledge):
    """The student's map after denoising and the teacher's, and the noise that the denoiser sees and the true one.

    A diffusion of 1000 times t, with a_t the product of 1 - beta up to t and beta linear from 1e-4 to 0.02. The student
    becomes x = eta S + (1 - eta) e, e ~ N(0, 1) and eta in (0, 1) learned from S. Then t goes from (steps - 1) d down
    to 0 by d = 1000 / (2 steps), rounded down, with z what the denoiser sees in x at t:

        x -> sqrt(a_(t-d)) (x - sqrt(1 - a_t) z) / sqrt(a_t) + sqrt(1 - a_(t-d)) z,  a_t = 1 for t < 0,

    and a learned 1x1 convolution and batch normalisation end it. The denoiser learns from sqrt(a_t) T + sqrt(1 - a_t) e
    at a random t per image what e was. Two pairs ``(N, C, H, W)`` per level, each level learning apart; the second
    trains the denoiser alone.

    Args:
        steps: of the denoising, up to 500.

    Source: DiffKD (Huang et al., NeurIPS 2023), section 3, steps as DDIM (Song et al., ICLR 2021), equation 12.
    """

    yields: ClassVar[Kind] = "feature"

    steps: Annotated[Count, Field(le=_TIMES // 2)] = 5

    def learned(self, channels: Mapping[str, int], generator: torch.Generator) -> nn.Module:
        """The denoisers and their surroundings, for maps of these channels."""
        return PerLevel((_Refiner(count, self.steps, generator) for count in channels.values()), draws=True)


class _Refiner(nn.Module):
    kept: Tensor

    def __init__(self, channels: int, steps: int, generator: torch.Generator) -> None:
        super().__init__()
        self.steps = steps
        self.denoiser = Denoiser(channels, generator)
        self.match = nn.Sequential(
            Bottleneck(channels, 8, generator), nn.AdaptiveAvgPool2d(1), convolution(channels, 2, 1, generator)
        )
        self.project = nn.Sequential(convolution(channels, channels, 1, generator), BatchNorm(channels))
        betas = torch.linspace(_FIRST_BETA, _LAST_BETA, _TIMES, dtype=torch.float64)
        self.register_buffer("kept", (1 - betas).cumprod(0).to(torch.get_default_dtype()), persistent=False)

    def forward(self, student: Tensor, teacher: Tensor, generator: torch.Generator) -> tuple[Pair, Pair]:
        eta = self.match(student).softmax(1)[:, :1]  # (N, 1, 1, 1)
        refined = self.denoise(eta * student + (1 - eta) * _noise(student, generator))
        times = torch.randint(_TIMES, (len(teacher),), generator=generator, device=generator.device)
        times, noise = times.to(teacher.device), _noise(teacher, generator)
        kept = self.kept[times].view(-1, 1, 1, 1)
        seen = self.denoiser(kept.sqrt() * teacher.detach() + (1 - kept).sqrt() * noise, times)
        return Pair(self.project(refined), teacher), Pair(seen, noise)

    def denoise(self, noisy: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same, along the second half of twice as many steps through all times."""
        stride = _TIMES // (2 * self.steps)
        for time in range((self.steps - 1) * stride, -1, -stride):
            kept = self.kept[time]
            before = self.kept[time - stride] if time else torch.ones_like(kept)
            noise = self.denoiser(noisy, torch.full((len(noisy),), time, device=noisy.device))
            clean = (noisy - (1 - kept).sqrt() * noise) / kept.sqrt()
            noisy = before.sqrt() * clean + (1 - before).sqrt() * noise
        return noisy


class Denoiser(nn.Module):
    """The noise in maps ``(N, C, H, W)`` at times ``(N,)``."""

    def __init__(self, channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.time = nn.Embedding.from_pretrained(torch.randn(_TIMES, channels, generator=generator), freeze=False)
        self.layers = nn.Sequential(
            Bottleneck(channels, 4, generator),
            Bottleneck(channels, 4, generator),
            convolution(channels, channels, 1, generator),
            BatchNorm(channels),
        )

    def forward(self, noisy: Tensor, times: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same."""
        return self.layers(noisy + self.time(times)[..., None, None])


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1 around a part of the channels, added to what came in."""

    def __init__(self, channels: int, reduction: int, generator: torch.Generator) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.layers = nn.Sequential(
            convolution(channels, hidden, 1, generator),
            BatchNorm(hidden),
            nn.ReLU(),
            convolution(hidden, hidden, 3, generator),
            BatchNorm(hidden),
            nn.ReLU(),
            convolution(hidden, channels, 1, generator),
            BatchNorm(channels),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """``(N, C, H, W)`` to the same."""
        return feature + self.layers(feature)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers, the same on every device."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)
