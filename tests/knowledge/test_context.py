"""Context blocks: the formula by loops, apart for each side, and the identity at first."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detkds import Distiller, Policy, Term
from detkds.errors import PolicyError
from detkds.knowledge.context import ContextBlock
from detkds.structures import DetectorOutput, FeatureSpec

POLICY = Policy([Term("context", [], "l2(per=image)", 0.5)])
SPECS = {level: FeatureSpec(4, stride) for level, stride in (("p3", 8), ("p4", 16))}


def output(seed: int) -> DetectorOutput:
    generator = torch.Generator().manual_seed(seed)
    maps = {"p3": torch.randn(2, 4, 3, 2, generator=generator), "p4": torch.randn(2, 4, 2, 1, generator=generator)}
    return DetectorOutput(maps, torch.tensor([[24, 16]] * 2))


def shaken(distiller: Distiller) -> Distiller:
    """The distiller with every learned number drawn anew, so that none is 0."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in distiller.parameters():
            parameter.normal_(generator=generator)
    return distiller


def slow_block(feature: Tensor, block: ContextBlock) -> Tensor:
    """FGD's equation 10 for one image ``(C, H, W)``, position by position."""
    channels, height, width = feature.shape
    cells = [feature[:, i, j] for i in range(height) for j in range(width)]
    key, narrow, widen = (layer.weight[:, :, 0, 0] for layer in (block.key, block.narrow, block.widen))
    scores = [math.exp(float(key[0] @ cell + block.key.bias[0])) for cell in cells]
    context = sum(score / sum(scores) * cell for score, cell in zip(scores, cells, strict=True))
    hidden = narrow @ context + block.narrow.bias
    mean = sum(hidden.tolist()) / len(hidden)
    spread = math.sqrt(sum((value - mean) ** 2 for value in hidden.tolist()) / len(hidden) + 1e-5)
    scale, shift = block.norm.weight.flatten(), block.norm.bias.flatten()
    hidden = ((hidden - mean) / spread * scale + shift).clamp(min=0)
    added = widen @ hidden + block.widen.bias
    return torch.stack([cell + added for cell in cells], 1).view(channels, height, width)


def test_the_loss_is_that_of_loops():
    distiller = shaken(Distiller(POLICY, student=SPECS, teacher=SPECS))
    student, teacher = output(0), output(1)
    (loss,) = distiller(student, teacher).values()
    (blocks,) = distiller.learned.values()
    expected = 0.0
    with torch.no_grad():
        for index, level in enumerate(SPECS):
            for image in range(2):
                ours = slow_block(student.features[level][image], blocks.parts[index].student)
                theirs = slow_block(teacher.features[level][image], blocks.parts[index].teacher)
                expected += 0.5 * (ours - theirs).square().sum().item() / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_both_sides_learn_apart_and_begin_as_the_identity():
    distiller = Distiller(POLICY, student=SPECS, teacher=SPECS)
    student, teacher = output(0), output(1)
    plain = Distiller(Policy([Term("global", [], "l2(per=image)", 0.5)]), student=SPECS, teacher=SPECS)
    ours, theirs = (one(student, teacher).popitem()[1] for one in (distiller, plain))
    torch.testing.assert_close(ours, theirs)
    (blocks,) = distiller.learned.values()
    assert not torch.equal(blocks.parts[0].student.key.weight, blocks.parts[0].teacher.key.weight)
    wide = Policy([Term("context(ratio=4)", [], "l2")])
    distiller = shaken(Distiller(wide, student=SPECS, teacher=SPECS))
    distiller(student, teacher).popitem()[1].backward()
    # a softmax does not feel a shift of all scores
    felt = [one.grad.abs().sum() > 0 for name, one in distiller.named_parameters() if not name.endswith("key.bias")]
    assert all(felt) and all(parameter.grad is not None for parameter in distiller.parameters())


def test_a_ratio_that_is_none():
    with pytest.raises(PolicyError, match="ratio: expected a finite number > 0"):
        Term("context(ratio=0)", [], "l2")
