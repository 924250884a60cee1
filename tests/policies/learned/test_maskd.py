"""MasKD against loops over every token and cell; what the tokens learn, and from whom."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detkds import Distiller, Policy, Term, load_policy
from detkds.distiller import check_pair
from detkds.errors import PairError
from detkds.knowledge.receptive import ReceptiveTokens, dice
from detkds.structures import DetectorInfo, FeatureSpec, Layout


@pytest.fixture
def shaken_maskd(case) -> Distiller:
    """The shipped policy with every learned number drawn anew, so that masks and weights differ."""
    _, distiller = case.distil("maskd")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in distiller.parameters():
            parameter.normal_(std=0.6, generator=generator)
    return distiller


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def dot(left: Tensor, right: Tensor) -> float:
    return sum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True))


def slow_shares(feature: Tensor, part: Any) -> list[float]:
    """The weights of the tokens in one image ``(C, H, W)``."""
    channels, height, width = feature.shape
    kernel, means = part.gather.weight, part.gather.bias.tolist()
    for out in range(channels):
        for i in range(height):
            for j in range(width):
                for a in (-1, 0, 1):
                    for b in (-1, 0, 1):
                        if 0 <= i + a < height and 0 <= j + b < width:
                            column = feature[:, i + a, j + b]
                            means[out] += dot(kernel[out, :, a + 1, b + 1], column) / (height * width)
    scores = [dot(row, torch.tensor(means)) for row in part.weigh.weight[:, :, 0, 0]]
    grown = [math.exp(score + bias) for score, bias in zip(scores, part.weigh.bias.tolist(), strict=True)]
    return [one / sum(grown) for one in grown]


def slow_level(student: Tensor, teacher: Tensor, scores: Tensor, part: Any, valid: Any) -> float:
    """The three sums of one level; ``scores (N, K, A, H, W)``, ``valid(image, row, column)``."""
    images, channels, height, width = teacher.shape
    cells = [(i, j) for i in range(height) for j in range(width)]
    masked = explained = confident = overlap = 0.0
    for n in range(images):
        weights = slow_shares(teacher[n], part)
        masks = [{(i, j): sigmoid(dot(token, teacher[n, :, i, j])) for i, j in cells} for token in part.tokens]
        for weight, mask in zip(weights, masks, strict=True):
            for c in range(channels):
                squares = sum(
                    mask[i, j] ** 2 * (student[n, c, i, j] - teacher[n, c, i, j]).item() ** 2 for i, j in cells
                )
                masked += weight * squares / sum(mask.values()) / channels / images
        for i, j in cells:
            if valid(n, i, j):
                p = max(sigmoid(one) for one in scores[n, :, :, i, j].flatten().tolist())
                kept = sum(weight * mask[i, j] for weight, mask in zip(weights, masks, strict=True))
                read = kept * dot(part.predict.weight[0, :, 0, 0], teacher[n, :, i, j]) + part.predict.bias.item()
                explained += (p - sigmoid(read)) ** 2
                confident += p
        for t, one in enumerate(masks):
            for u, other in enumerate(masks):
                if t != u:
                    shared = 2 * sum(one[cell] * other[cell] for cell in cells)
                    both = sum(one[cell] ** 2 + other[cell] ** 2 for cell in cells)
                    overlap += shared / both / (len(masks) * (len(masks) - 1)) / images
    return masked + explained / confident + overlap


@torch.no_grad()
def test_the_losses_are_those_of_loops(case, valid, shaken_maskd):
    first, second = shaken_maskd(case.student, case.teacher).values()
    masked = boxes = 0.0
    parts = shaken_maskd.learned["receptive p3 p4 conv(1)"].parts
    for (level, stride), part in zip((("p3", 8), ("p4", 16)), parts, strict=True):
        adapted = shaken_maskd.adapters[f"{level} conv(1)"](case.student.features[level])
        teacher = case.teacher.features[level], case.teacher.logits[level]
        masked += slow_level(adapted, *teacher, part, lambda n, i, j, s=stride: valid(n, i, j, s))
        boxes += (case.student.regression[level] - case.teacher.regression[level]).abs().mean().item()
    assert len(parts[0].tokens) == 6
    assert first.item() == pytest.approx(7 * masked, rel=1e-9)
    assert second.item() == pytest.approx(boxes, rel=1e-9)


def test_what_is_learned_gets_a_gradient_and_the_teacher_none(case, shaken_maskd):
    sides = [[*side.features.values(), *side.logits.values()] for side in (case.student, case.teacher)]
    for tensor in sides[0] + sides[1]:
        tensor.requires_grad_()
    shaken_maskd(case.student, case.teacher)["receptive/l2"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in shaken_maskd.parameters())
    assert all(feature.grad.abs().sum() > 0 for feature in case.student.features.values())
    assert all(logits.grad is None for logits in case.student.logits.values())
    assert all(tensor.grad is None for tensor in sides[1])


def test_the_tokens_learn_from_the_teacher_alone(case, shaken_maskd):
    """Else they would learn to mask what the student finds hard."""
    learned = list(shaken_maskd.learned.parameters())
    other = replace(case.student, features={k: 3 * one + 1 for k, one in case.student.features.items()})
    gradients = [
        torch.autograd.grad(shaken_maskd(student, case.teacher)["receptive/l2"], learned)
        for student in (case.student, other)
    ]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_masks_come_to_explain_the_teacher_and_to_differ():
    """Objects in the left half of the map, which channel 0 tells apart."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 4, 6, 6, generator=generator)
    teacher[:, 0] = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    wanted = 0.9 * (teacher[:, :1] > 0).float()
    tokens = ReceptiveTokens(4, 3, generator)
    learned = list(tokens.parameters())

    def losses() -> Tensor:
        _, explained, apart = tokens(teacher, teacher, wanted, torch.ones_like(wanted))
        return torch.stack([explained.mean((explained.student - wanted) ** 2), apart.student.square().mean()])

    begun = losses().detach()
    for _ in range(100):
        gradients = torch.autograd.grad(losses().sum(), learned)
        with torch.no_grad():
            for parameter, gradient in zip(learned, gradients, strict=True):
                parameter -= gradient
    assert begun[0] > 0.7 and begun[1] > 0.99
    assert losses()[0] < 0.05 and losses()[1] < 0.5
    weight = tokens(teacher, teacher, wanted, wanted)[0].weight
    assert weight[..., :3].sum() > 0.55 * weight.sum()


def test_dice_by_hand():
    masks = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])[None, :, None]
    torch.testing.assert_close(dice(masks), torch.tensor([[2 / 3, 0.0, 0.0]]))


def test_empty_masks_stay_finite():
    """Tokens so long that every mask is 0 in float32."""
    teacher = torch.ones(1, 2, 2, 2)
    tokens = ReceptiveTokens(2, 2, torch.Generator())
    torch.nn.init.constant_(tokens.tokens, -1000)
    pairs = tokens(teacher, teacher, *torch.ones(2, 1, 1, 2, 2))
    assert torch.equal(pairs[0].weight, torch.zeros(1, 1, 2, 2))
    loss = torch.stack([pair.student.square().sum() for pair in pairs]).sum()
    gradients = torch.autograd.grad(loss, list(tokens.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_heads_without_a_confidence_for_every_cell_are_refused():
    layouts = (
        Layout("region", "softmax", 3, regression="deltas"),
        Layout("query", "sigmoid", 3, regression="centre"),
        Layout("dense", "sigmoid", 3, regression="deltas"),
    )
    infos = [DetectorInfo({"p3": FeatureSpec(4, 8)}, layout) for layout in layouts]
    policy = Policy([Term("receptive", [], "l2")])
    for info in infos[:2]:
        with pytest.raises(PairError, match="a score for every cell needs dense heads"):
            check_pair(policy, info, info)
    check_pair(policy, infos[2], infos[2])
    with pytest.raises(PairError, match="anchor"):  # their raw boxes mean different things
        check_pair(load_policy("maskd"), infos[2], replace(infos[2], layout=replace(infos[2].layout, anchor_key="b")))
