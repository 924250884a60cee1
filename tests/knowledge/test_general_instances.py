"""General instances of dense and region heads against a choice one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torchvision.ops import nms

from detkds.knowledge.general_instances import general_instances
from detkds.knowledge.instance import Instance
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, KnowledgeInput, Layout

REGION = Layout("region", "softmax", num_classes=2, regression="deltas")


def region_output(seed: int, counts: tuple[int, ...]) -> DetectorOutput:
    generator = torch.Generator().manual_seed(seed)
    total = sum(counts)
    low = 60 * torch.rand(total, 2, 3, generator=generator)
    boxes = torch.cat((low, low + 5 + 20 * torch.rand(total, 2, 3, generator=generator)), 1)
    return DetectorOutput(
        {"p3": torch.randn(len(counts), 4, 8, 8, generator=generator)},
        torch.tensor([[64, 64]] * len(counts)),
        REGION,
        {"roi": torch.randn(total, 3, generator=generator)},
        {"roi": boxes},
        {"roi": boxes},
        proposals=[torch.zeros(count, 4) for count in counts],
    )


def test_of_regions_as_nms_chooses_them():
    counts = (40, 3, 0)
    student, teacher = region_output(0, counts), region_output(1, counts)
    found = general_instances(KnowledgeInput(student, teacher, None, {"p3": 8}))
    ours, theirs = (side.logits["roi"].softmax(1) for side in (student, teacher))
    start = 0
    for count, boxes in zip(counts, found, strict=True):
        scores, candidates = [], []
        for row in range(start, start + count):
            likeliest = [side[row, 1:].argmax() + 1 for side in (ours, theirs)]
            apart = theirs[row, likeliest[1]] - ours[row, likeliest[0]]
            side, k = (teacher, likeliest[1]) if apart > 0 else (student, likeliest[0])
            box = side.boxes["roi"][row, :, k].clamp(0, 64)
            if (box[2:] - box[:2] > 10).all():
                scores.append(apart.abs())
                candidates.append(box)
        if candidates:
            stacked = torch.stack(candidates)
            expected = stacked[nms(stacked, torch.stack(scores), 0.3)[:10]]
        else:
            expected = torch.zeros(0, 4)
        assert torch.equal(boxes, expected)
        start += count
    assert len(found[0]) == 10


def test_padding_has_no_instances_and_equal_heads_have_some(output, strides):
    student, teacher = output(0), output(1)
    # Boxes that hardly overlap, numbered by their cell, so that none suppresses another.
    for side in (student, teacher):
        for level, stride in strides.items():
            cells = torch.arange(64 // stride * 1.0)
            x, y = cells.view(1, 1, 1, -1), cells.view(1, 1, -1, 1)
            low = torch.stack(torch.broadcast_tensors(x * stride, y * stride), 1)
            side.boxes[level] = torch.cat((low, low + 11), 1).expand(2, 4, 2, 64 // stride, 64 // stride)
    first, second = general_instances(KnowledgeInput(student, teacher, None, strides))
    assert len(first) == len(second) == 10
    for boxes, (height, width) in ((first, (64, 64)), (second, (40, 56))):
        assert (boxes[:, 2] <= width).all() and (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 10).all()
    assert all(len(one) == 10 for one in general_instances(KnowledgeInput(student, student, None, strides)))


def test_instances_are_cropped_without_targets():
    student, teacher = region_output(0, (5, 2)), region_output(1, (5, 2))
    [pair] = Instance(source="gi")(KnowledgeInput(student, teacher, None, {"p3": 8}))
    assert len(pair.student) == sum(map(len, general_instances(KnowledgeInput(student, teacher, None, {"p3": 8}))))
    assert Instance(source="gi").reads_responses and not Instance().reads_responses


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"kind": "query"}, "dense or region heads"),
        ({"regression": "none"}, "dense or region heads"),
        ({"num_classes": 4}, "num classes"),
    ],
)
def test_refusals(changes, reason):
    ours = DetectorInfo({"p3": FeatureSpec(4, 8)}, REGION)
    theirs = replace(ours, layout=replace(REGION, **changes))
    refusal = Instance(source="gi").refusal(ours, theirs)
    assert refusal is None if reason is None else reason in (refusal or "")
