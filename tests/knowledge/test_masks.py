"""Masks over whole maps: by the teacher's scores, and by the anchors near objects."""

from __future__ import annotations

import pytest
import torch

from detkds.knowledge.anchor_mask import anchor_mask
from detkds.knowledge.global_ import Global
from detkds.structures import DetectorInfo, FeatureSpec, KnowledgeInput, Layout


def info(kind: str = "dense", classes: int = 3) -> DetectorInfo:
    return DetectorInfo({"p3": FeatureSpec(4, 8)}, Layout(kind, "sigmoid", classes))  # type: ignore[arg-type]


def test_a_cell_counts_by_the_teachers_largest_score(output, strides):
    student, teacher = output(0), output(1)
    for level, pair in zip(strides, Global(mask="score")(KnowledgeInput(student, teacher, None, strides)), strict=True):
        side = 64 // strides[level]
        for n in range(2):
            for i in range(side):
                for j in range(side):
                    inside = n == 0 or (i * strides[level] < 40 and j * strides[level] < 56)
                    scores = [teacher.logits[level][n, k, a, i, j].sigmoid().item() for k in range(3) for a in range(2)]
                    assert pair.weight[n, 0, i, j].item() == pytest.approx(max(scores) if inside else 0)
        assert pair.student is student.features[level] and not pair.weight.requires_grad


def test_scores_need_dense_heads_of_the_same_classes():
    assert Global(mask="score").reads_responses and not Global(mask="anchor").reads_responses
    assert Global(mask="score").refusal(info(), info()) is None
    assert "student region, teacher dense" in (Global(mask="score").refusal(info("region"), info()) or "")
    assert "num classes" in (Global(mask="score").refusal(info(), info(classes=5)) or "")
    assert Global(mask="anchor").refusal(info("query"), info("none")) is None


def test_anchors_by_hand():
    """Stride 1, one row of cells; the box is the square anchor of the cell at 20.5.

    Moved by d cells a square anchor keeps (8 - d) / (8 + d) of the IoU 1, above one half up to d = 2; those of other
    ratios overlap less.
    """
    box = torch.tensor([[16.5, -3.5, 24.5, 4.5]])
    [mask] = anchor_mask([box], (1, 40), 1)
    assert mask[0, 0].nonzero().flatten().tolist() == [18, 19, 20, 21, 22]


def test_objects_are_joined_and_images_kept_apart(targets):
    boxes = [one["boxes"] for one in targets([[[0, 0, 8, 8], [48, 48, 64, 64]], [], [[48, 48, 64, 64]]])]
    mask = anchor_mask(boxes, (16, 16), 4)
    alone = [anchor_mask([one], (16, 16), 4)[0] for one in (boxes[0][:1], boxes[0][1:])]
    assert torch.equal(mask[0], alone[0] | alone[1]) and torch.equal(mask[2], alone[1]) and not mask[1].any()


def test_a_box_beside_the_map_has_no_cells():
    assert not anchor_mask([torch.tensor([[900.0, 900.0, 950.0, 960.0]])], (4, 4), 8).any()


def test_padding_is_not_near_an_object(output, targets):
    [pair] = Global(mask="anchor")(KnowledgeInput(output(0), output(1), targets([[], [[0, 0, 64, 64]]]), {"p3": 8}))
    assert pair.weight[1, :, 5:].sum() == 0 and pair.weight[1, :, :, 7:].sum() == 0
    assert pair.weight[1].sum() > 0 and pair.weight[0].sum() == 0


def test_targets_are_needed(output):
    with pytest.raises(ValueError, match="needs the targets"):
        list(Global(mask="anchor")(KnowledgeInput(output(0), output(1), None, {"p3": 8})))
