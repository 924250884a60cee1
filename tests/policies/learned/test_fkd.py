"""FKD against loops over every position."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detkds import Distiller, Policy, Term
from detkds.structures import DetectorOutput

Maps = Callable[[int], DetectorOutput]
Shaken = Callable[[str | Policy], Distiller]


def affine(layer: torch.nn.Conv2d, column: Tensor) -> Tensor:
    return layer.weight[:, :, 0, 0] @ column + layer.bias


def length(differences: list[float]) -> float:
    return math.sqrt(sum(one**2 for one in differences))


def attention(feature: Tensor, tau: float = 0.5) -> list[list[float]]:
    """H W times the softmax over positions of the mean magnitude, for one image ``(C, H, W)``."""
    _, height, width = feature.shape
    strength = [[math.exp(feature[:, i, j].abs().mean().item() / tau) for j in range(width)] for i in range(height)]
    mass = sum(map(sum, strength))
    return [[height * width * one / mass for one in row] for row in strength]


def slow_guided(student: Tensor, teacher: Tensor, part: torch.nn.Module) -> float:
    squares = []
    for ours, theirs in zip(student, teacher, strict=True):
        weights = attention(ours), attention(theirs)
        for i in range(ours.shape[1]):
            for j in range(ours.shape[2]):
                mean = (weights[0][i][j] + weights[1][i][j]) / 2
                difference = affine(part.adapt, ours[:, i, j]) - theirs[:, i, j]
                squares += [math.sqrt(mean) * one for one in difference.tolist()]
    return length(squares)


def slow_positions(student: Tensor, teacher: Tensor, part: torch.nn.Module) -> float:
    differences: list[float] = []
    for ours, theirs in zip(student, teacher, strict=True):
        differences += (affine(part.adapt, ours.flatten(1).mean(1)) - theirs.flatten(1).mean(1)).tolist()
    return length(differences)


def slow_channels(student: Tensor, teacher: Tensor, part: torch.nn.Module) -> float:
    kernel, bias = part.adapt.weight[0, 0], part.adapt.bias.item()
    differences = []
    for ours, theirs in zip(student, teacher, strict=True):
        _, height, width = ours.shape
        for i in range(height):
            for j in range(width):
                found = bias
                for a in (-1, 0, 1):
                    for b in (-1, 0, 1):
                        if 0 <= i + a < height and 0 <= j + b < width:
                            found += (kernel[a + 1, b + 1] * ours[:, i + a, j + b].mean()).item()
                differences.append(found - theirs[:, i, j].mean().item())
    return length(differences)


def related(feature: Tensor, block: torch.nn.Module, pool: int) -> dict[tuple[int, int], Tensor]:
    """The non-local block of one image, every relation apart."""
    _, height, width = feature.shape
    cells = [(i, j) for i in range(height) for j in range(width)]

    def pooled(layer: torch.nn.Conv2d) -> list[Tensor]:
        values = {cell: affine(layer, feature[:, cell[0], cell[1]]) for cell in cells}
        corners = [(a, b) for a in range(0, height, pool) for b in range(0, width, pool)]
        return [
            torch.stack([values[i, j] for i, j in cells if (i // pool, j // pool) == (a // pool, b // pool)]).amax(0)
            for a, b in corners
        ]

    keys, values, found = pooled(block.phi), pooled(block.g), {}
    for i, j in cells:
        theta = affine(block.theta, feature[:, i, j])
        summed = sum((theta @ key) * value for key, value in zip(keys, values, strict=True)) / len(keys)
        found[i, j] = feature[:, i, j] + affine(block.out, summed)
    return found


def slow_non_local(student: Tensor, teacher: Tensor, part: torch.nn.Module) -> float:
    differences: list[float] = []
    for ours, theirs in zip(student, teacher, strict=True):
        left, right = (related(one, block, block.pool) for one, block in ((ours, part.student), (theirs, part.teacher)))
        for cell in left:
            differences += (affine(part.adapt, left[cell]) - right[cell]).tolist()
    return length(differences)


@torch.no_grad()
def test_the_losses_are_those_of_loops(maps: Maps, shaken: Shaken) -> None:
    distiller, student, teacher = shaken("fkd"), maps(0), maps(1)
    for part in distiller.learned["non_local p3 p4"].parts:
        part.student.pool = part.teacher.pool = 2  # so that the small maps have more than one key
    losses = distiller(student, teacher)
    references = [(7e-5, slow_guided), (4e-3, slow_positions), (4e-3, slow_channels), (7e-5, slow_non_local)]
    for loss, part, (weight, slow) in zip(losses.values(), distiller.learned.values(), references, strict=True):
        expected = sum(
            weight * slow(student.features[level], teacher.features[level], one)
            for level, one in zip(("p3", "p4"), part.parts, strict=True)
        )
        assert loss.item() == pytest.approx(expected, rel=1e-5), slow.__name__


def test_the_blocks_have_the_published_sizes() -> None:
    parts = Term("non_local").knowledge.learned(dict.fromkeys("abcde", 8), torch.Generator()).parts
    sizes = [(one.student.pool, one.student.theta.out_channels) for one in parts]
    assert sizes == [(8, 2), (4, 2), (2, 4), (2, 4), (2, 4)]


@torch.no_grad()
def test_channels_can_count_by_their_attention_too(maps: Maps, shaken: Shaken) -> None:
    term = Term("guided(channels=true, tau=2)", [], "euclidean", levels=("p4",))
    distiller, student, teacher = shaken(Policy([term])), maps(0), maps(1)
    (loss,) = distiller(student, teacher).values()
    (part,) = distiller.learned["guided(tau=2, channels=true) p4"].parts
    expected = 0.0
    for ours, theirs in zip(student.features["p4"], teacher.features["p4"], strict=True):
        spatial = [attention(side, 2.0) for side in (ours, theirs)]
        channel = [attention(side.flatten(1).t()[..., None], 2.0) for side in (ours, theirs)]  # both exchanged
        for i in range(2):
            difference = affine(part.adapt, ours[:, i, 0]) - theirs[:, i, 0]
            for c in range(4):
                means = [(sides[0][row][0] + sides[1][row][0]) / 2 for sides, row in ((spatial, i), (channel, c))]
                expected += means[0] * means[1] * difference[c].item() ** 2
    assert loss.item() == pytest.approx(math.sqrt(expected), rel=1e-5)


def test_what_is_learned_gets_a_gradient_and_the_teacher_none(maps: Maps, shaken: Shaken) -> None:
    distiller, student, teacher = shaken("fkd"), maps(0), maps(1)
    for side in (student, teacher):
        for feature in side.features.values():
            feature.requires_grad_()
    torch.stack(list(distiller(student, teacher).values())).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in distiller.parameters())
    assert all(feature.grad is None for feature in teacher.features.values())
    assert all(feature.grad.abs().sum() > 0 for feature in student.features.values())
