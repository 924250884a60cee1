"""What every kind of knowledge must do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from detkds.registry import KNOWLEDGE
from detkds.structures import (
    Branch,
    BranchSpec,
    DetectorInfo,
    DetectorOutput,
    FeatureSpec,
    KnowledgeInput,
    Layout,
    Pair,
    Target,
)
from detkds.testing.pieces import SHAPES, check_arguments_are_named, check_spelling

_STRIDES = {"p3": 8.0, "p4": 16.0}
_REGIONS = ("main", "background", "vlr", "centerness")
_LAYOUT = Layout("dense", "sigmoid", num_classes=3, anchors=2, regression="sides", anchor_key="points", bins="0 to 4")


def check_knowledge(expression: str) -> None:
    """Every check of registered knowledge with these arguments, between two dense heads.

    Raises:
        AssertionError: what it does wrong, or that it refuses these detectors.
    """
    piece = KNOWLEDGE.build(expression)
    check_spelling(KNOWLEDGE, piece)
    check_arguments_are_named(KNOWLEDGE, piece)
    assert piece.yields in SHAPES, piece.yields
    info = example_info()
    refusal = piece.refusal(info, info)
    assert refusal is None, f"{expression} refuses two equal dense heads: {refusal}"
    check_pairs(piece)


def check_pairs(piece: Any) -> None:
    """Pairs of one shape, finite, whose gradient goes to the student; the same of the same inputs, none modified."""
    student, teacher = example_output(0, learns=True), example_output(1)
    tensors = _tensors(student) + _tensors(teacher)
    for targets in (example_targets(), [Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0).long())] * 2):
        inputs = KnowledgeInput(student, teacher, targets, _STRIDES)
        kept = [tensor.detach().clone() for tensor in tensors]
        before = torch.get_rng_state()
        pairs, again = _pairs(piece, inputs), _pairs(piece, inputs)
        assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
        assert [pair.student.tolist() for pair in pairs] == [pair.student.tolist() for pair in again], "they differ"
        for pair in pairs:
            assert pair.student.shape == pair.teacher.shape, (pair.student.shape, pair.teacher.shape)
            assert pair.student.isfinite().all() and pair.teacher.isfinite().all()
            assert pair.teacher_learns or not pair.teacher.requires_grad, "the teacher's side has a gradient"
            assert pair.weight is None or (pair.weight >= 0).all(), "a weight is negative"
            if pair.weight is not None:
                pair.weight.expand_as(pair.student)
        assert all(map(torch.equal, tensors, kept)), "an input was modified"
    pairs = _pairs(piece, KnowledgeInput(student, teacher, example_targets(), _STRIDES))
    assert pairs, "no pairs"
    total = torch.stack([(pair.student - pair.teacher).square().sum() for pair in pairs]).sum()
    gradients = torch.autograd.grad(total, _tensors(student), allow_unused=True)
    reached = [gradient for gradient in gradients if gradient is not None]
    assert all(gradient.isfinite().all() for gradient in reached)
    assert any(gradient.abs().sum() > 0 for gradient in reached), "the student learns nothing"


def _pairs(piece: Any, inputs: KnowledgeInput) -> list[Pair]:
    channels = {level: feature.shape[1] for level, feature in inputs.teacher.features.items()}
    learned = piece.learned(channels, torch.Generator().manual_seed(0))
    return list((learned or piece)(replace(inputs, generator=torch.Generator().manual_seed(1))))


def example_info() -> DetectorInfo:
    """Of a dense head that offers all that knowledge may read."""
    features = {level: FeatureSpec(8, stride) for level, stride in _STRIDES.items()}
    return DetectorInfo(features, _LAYOUT, regions=_REGIONS, branches=BranchSpec(8, 4))


def example_output(seed: int, *, learns: bool = False) -> DetectorOutput:
    """Its output for two images, of 64 x 64 and 40 x 56 valid pixels.

    Args:
        learns: whether the tensors have gradients, as a student's.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*leading: int) -> dict[str, Tensor]:
        return {
            level: torch.randn(2, *leading, side, side, generator=generator).requires_grad_(learns)
            for level, side in (("p3", 8), ("p4", 4))
        }

    features, sizes = draw(8), torch.tensor([[64, 64], [40, 56]])
    corners = draw(4, 2)
    boxes = {
        level: torch.cat((24 + 8 * value[:, :2], 24 + 8 * value[:, :2] + 4 + 8 * value[:, 2:].abs()), 1)
        for level, value in corners.items()
    }
    branches = _Branches(features)
    output = DetectorOutput(features, sizes, _LAYOUT, draw(3, 2), corners, boxes, draw(4, 5, 2), branches=branches)
    return replace(output, region=_mark)


def example_targets() -> list[Target]:
    """Two objects and one."""
    boxes = (torch.tensor([[4.0, 6.0, 38.0, 30.0], [30.0, 30.0, 61.0, 63.0]]), torch.tensor([[8.0, 8.0, 30.0, 39.0]]))
    return [Target(boxes=rows, labels=torch.arange(len(rows))) for rows in boxes]


@dataclass(frozen=True)
class _Branches:
    """Of a head whose maps are those of the pyramid, and whose responses are sums of channels of its maps."""

    features: Mapping[str, Tensor]

    def before(self, branch: Branch, after: int) -> dict[str, Tensor]:
        return {level: feature / after for level, feature in self.features.items()}

    def finish(self, branch: Branch, after: int, maps: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        if branch == "classification":
            return {"logits": {level: tensor[:, :6].unflatten(1, (3, 2)) for level, tensor in maps.items()}}
        sides = {level: tensor.unflatten(1, (4, 2)) for level, tensor in maps.items()}
        distribution = {level: torch.stack([k * value for k in range(5)], 2) for level, value in sides.items()}
        return {"regression": sides, "boxes": sides, "box_distribution": distribution}


def _mark(name: str, boxes: Sequence[Tensor] | None = None) -> dict[str, Tensor]:
    """Every second position is an object's, the others are the background's."""
    marked = {}
    for level, side in (("p3", 8), ("p4", 4)):
        inside = (torch.arange(2 * side * side) % 2 == 0).float().view(1, 1, 2, side, side).expand(2, -1, -1, -1, -1)
        marked[level] = 1 - inside if name == "background" else inside
    return marked


def _tensors(output: DetectorOutput) -> list[Tensor]:
    groups = (output.features, output.logits, output.regression, output.box_distribution)
    return [tensor for group in groups for tensor in group.values()]
