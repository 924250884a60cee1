"""Crops at the objects, and the level each object belongs to."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detkds.knowledge.instance import Instance
from detkds.registry import KNOWLEDGE
from detkds.structures import DetectorInfo, FeatureSpec, KnowledgeInput


def test_a_crop_aligned_with_the_cells_is_the_sub_map(output, targets):
    # Two samples per bin lie a quarter cell from its centre; on a map that is linear in both axes their mean is exact.
    student, teacher = output(0), output(1)
    ramp = torch.arange(8.0).view(1, 1, 1, 8) + 10 * torch.arange(8.0).view(1, 1, 8, 1)
    student = replace(student, features={"p3": ramp.expand(2, 4, 8, 8).clone()})
    [pair] = Instance(size=3)(KnowledgeInput(student, teacher, targets([[[16, 24, 40, 48]], []]), {"p3": 8}))
    assert pair.student.shape == (1, 4, 3, 3)
    torch.testing.assert_close(pair.student[0], student.features["p3"][0, :, 3:6, 2:5])


def test_one_crop_per_object_and_level_in_order(output, targets, strides):
    boxes = targets([[[0, 0, 30, 30], [5, 5, 60, 60]], [[8, 8, 40, 39]]])
    pairs = list(Instance()(KnowledgeInput(output(0), output(1), boxes, strides)))
    assert [tuple(pair.student.shape) for pair in pairs] == [(3, 4, 7, 7)] * 2
    assert all(pair.student.shape == pair.teacher.shape and pair.weight is None for pair in pairs)
    alone = list(Instance()(KnowledgeInput(output(0), output(1), targets([[], [[8, 8, 40, 39]]]), strides)))
    for together, single in zip(pairs, alone, strict=True):
        torch.testing.assert_close(together.teacher[2:], single.teacher, atol=1e-6, rtol=1e-6)


def test_fpn_gives_every_object_to_one_level(output, targets):
    strides = {"p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128}
    base = output(0)
    features = {level: torch.zeros(2, 4, 8, 8) for level in strides}
    base = replace(base, features=features)
    sides = {16: "p3", 223: "p3", 225: "p4", 447: "p4", 449: "p5", 895: "p5", 897: "p6", 1791: "p6", 5000: "p7"}
    for side, expected in sides.items():
        boxes = targets([[[0, 0, side, side]], []])
        pairs = list(Instance(assign="fpn")(KnowledgeInput(base, base, boxes, strides)))
        assert [level for level, pair in zip(strides, pairs, strict=True) if len(pair.student)] == [expected], side


def test_fpn_leaves_no_object_out_where_levels_are_missing(output, targets):
    boxes = targets([[[0, 0, 9, 9], [0, 0, 500, 500]], [[0, 0, 2000, 2000]]])
    base = replace(output(0), features={"a": torch.zeros(2, 4, 4, 4), "b": torch.zeros(2, 4, 2, 2)})
    pairs = list(Instance(assign="fpn")(KnowledgeInput(base, base, boxes, {"a": 16, "b": 32})))
    assert [len(pair.student) for pair in pairs] == [1, 2]


def test_a_batch_without_objects_gives_empty_pairs(output, targets, strides):
    for pair in Instance()(KnowledgeInput(output(0), output(1), targets([[], []]), strides)):
        assert pair.student.shape == (0, 4, 7, 7) and pair.mean(pair.student) == 0


@pytest.mark.parametrize("expression", ["instance(size=0)", "instance(assign=nearest)"])
def test_arguments_are_checked(expression: str):
    with pytest.raises(ValueError, match=r"size: expected a whole number|assign: expected one of"):
        KNOWLEDGE.build(expression)


def test_pooled_joins_the_crops_of_all_levels(output, targets):
    boxes = targets([[[0, 0, 9, 9], [0, 0, 500, 500]], [[0, 0, 2000, 2000]]])
    base = replace(output(0), features={"a": torch.randn(2, 4, 4, 4), "b": torch.randn(2, 4, 2, 2)})
    apart = [p.student for p in Instance(assign="fpn")(KnowledgeInput(base, base, boxes, {"a": 16, "b": 32}))]
    [pooled] = Instance(assign="pooled")(KnowledgeInput(base, base, boxes, {"a": 16, "b": 32}))
    assert torch.equal(pooled.student, torch.cat(apart))
    info = DetectorInfo({"a": FeatureSpec(4, 16), "b": FeatureSpec(8, 32)})
    assert "equal channels" in (Instance(assign="pooled").refusal(info, info) or "")
    assert Instance(assign="fpn").refusal(info, info) is None
