"""DiffKD against its diffusion written out step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from detkds import Distiller, Policy, Term, load_policy
from detkds.errors import PolicyError
from detkds.structures import DetectorOutput, KnowledgeInput

Maps = Callable[[int], DetectorOutput]
Shaken = Callable[[str | Policy], Distiller]


def convolved(layer: nn.Conv2d, feature: Tensor) -> Tensor:
    """Position by position, what lies outside being 0."""
    images, _, height, width = feature.shape
    reach = layer.kernel_size[0] // 2
    found = torch.zeros(images, layer.out_channels, height, width)
    for i in range(height):
        for j in range(width):
            found[:, :, i, j] = layer.bias
            for a in range(-reach, reach + 1):
                for b in range(-reach, reach + 1):
                    if 0 <= i + a < height and 0 <= j + b < width:
                        found[:, :, i, j] += feature[:, :, i + a, j + b] @ layer.weight[:, :, a + reach, b + reach].T
    return found


def normalised(layer: nn.BatchNorm2d, feature: Tensor) -> Tensor:
    found = torch.zeros_like(feature)
    for channel in range(feature.shape[1]):
        plane = feature[:, channel]
        scale = layer.weight[channel] / math.sqrt(plane.var(unbiased=False).item() + 1e-5)
        found[:, channel] = (plane - plane.mean()) * scale + layer.bias[channel]
    return found


def bottleneck(block: nn.Module, feature: Tensor) -> Tensor:
    first, norm1, _, second, norm2, _, third, norm3 = block.layers
    hidden = normalised(norm1, convolved(first, feature)).clamp(min=0)
    hidden = normalised(norm2, convolved(second, hidden)).clamp(min=0)
    return feature + normalised(norm3, convolved(third, hidden))


def seen_noise(denoiser: nn.Module, noisy: Tensor, times: list[int]) -> Tensor:
    timed = torch.stack([one + denoiser.time.weight[t][:, None, None] for one, t in zip(noisy, times, strict=True)])
    one, other, last, norm = denoiser.layers
    return normalised(norm, convolved(last, bottleneck(other, bottleneck(one, timed))))


def kept(time: int) -> float:
    """The share of the signal's variance at a time of the linear schedule of 1000 times; all of it before the first."""
    return math.prod(1 - (1e-4 + (0.02 - 1e-4) * t / 999) for t in range(time + 1))


def refined(part: nn.Module, student: Tensor, noise: Tensor) -> Tensor:
    block, _, head = part.match
    pooled = bottleneck(block, student).mean((2, 3))
    x = torch.zeros_like(student)
    for image in range(len(student)):
        signal, other = (head.weight[:, :, 0, 0] @ pooled[image] + head.bias).exp().tolist()
        eta = signal / (signal + other)
        x[image] = eta * student[image] + (1 - eta) * noise[image]
    for time, after in pairwise([400, 300, 200, 100, 0, -1]):
        z = seen_noise(part.denoiser, x, [time] * len(x))
        clean = (x - math.sqrt(1 - kept(time)) * z) / math.sqrt(kept(time))
        x = math.sqrt(kept(after)) * clean + math.sqrt(1 - kept(after)) * z
    return normalised(part.project[1], convolved(part.project[0], x))


@torch.no_grad()
def test_the_loss_is_that_of_the_diffusion_step_by_step(maps: Maps, shaken: Shaken) -> None:
    distiller, student, teacher = shaken("diffkd"), maps(0), maps(1)
    (loss,) = distiller(student, teacher).values()
    generator, expected = torch.Generator().manual_seed(0), 0.0  # the draws of seed 0 at step 0
    for level, part in zip(("p3", "p4"), distiller.learned["denoised p3 p4 conv(1)"].parts, strict=True):
        wanted = teacher.features[level]
        ours = convolved(distiller.adapters[f"{level} conv(1)"], student.features[level])
        expected += (refined(part, ours, torch.randn(wanted.shape, generator=generator)) - wanted).square().mean()
        times = torch.randint(1000, (2,), generator=generator).tolist()
        noise = torch.randn(wanted.shape, generator=generator)
        noisy = torch.stack(
            [
                math.sqrt(kept(time)) * one + math.sqrt(1 - kept(time)) * more
                for one, more, time in zip(wanted, noise, times, strict=True)
            ]
        )
        expected += (seen_noise(part.denoiser, noisy, times) - noise).square().mean()
    assert loss.item() == pytest.approx(float(expected), rel=1e-3)


def test_the_teachers_diffusion_trains_the_denoiser_alone(maps: Maps, shaken: Shaken) -> None:
    distiller, student, teacher = shaken("diffkd"), maps(0), maps(1)
    for side in (student, teacher):
        for feature in side.features.values():
            feature.requires_grad_()
    (learned,) = distiller.learned.values()
    strides = {"p3": 8.0, "p4": 16.0}
    pairs = list(learned(KnowledgeInput(student, teacher, None, strides, torch.Generator().manual_seed(0))))
    assert len(pairs) == 4
    sum(pair.student.square().sum() for pair in pairs[1::2]).backward()
    trained = {name.split(".")[2] for name, one in learned.named_parameters() if one.grad is not None}
    assert trained == {"denoiser"}
    assert all(feature.grad is None for side in (student, teacher) for feature in side.features.values())
    assert not any(pair.teacher.requires_grad for pair in pairs[1::2])
    distiller(student, teacher)["denoised/l2"].backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in distiller.parameters())
    assert all(feature.grad.abs().sum() > 0 for feature in student.features.values())
    assert all(feature.grad is None for feature in teacher.features.values())


@torch.no_grad()
def test_every_step_draws_anew_and_alike_beside_other_terms(maps: Maps, shaken: Shaken) -> None:
    alone = load_policy("diffkd")
    drawing = Term("global", ["mask"], "l1", adapter="generate")
    beside = Policy([drawing, *alone])
    student, teacher = maps(0), maps(1)
    one = shaken(alone)
    first, second = (one(student, teacher)["denoised/l2"] for _ in range(2))
    assert not torch.isclose(first, second)
    other = shaken(beside)
    for name, parameter in one.named_parameters():
        other.get_parameter(name).copy_(parameter)
    assert torch.equal(other(student, teacher)["denoised/l2"], first)


def test_what_is_learned_begins_as_the_seed_says(maps: Maps) -> None:
    before = torch.get_rng_state()
    one, other = (Term("denoised").knowledge.learned({"p3": 4}, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(*both) for both in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("steps", [0, 501])
def test_a_number_of_steps_that_makes_no_sense_is_refused(steps: int) -> None:
    with pytest.raises(PolicyError, match="steps: expected a whole number"):
        Term(f"denoised(steps={steps})", [], "l2")
