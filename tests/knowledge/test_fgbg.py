"""Foreground and background: exactly the valid area, weighted so that small objects count."""

from __future__ import annotations

import pytest
import torch

from detkds.knowledge.fgbg import ForegroundBackground
from detkds.structures import KnowledgeInput


def test_a_box_over_the_valid_image_covers_exactly_the_valid_cells(output, targets, strides):
    boxes = targets([[[0, 0, 64, 64]], [[0, 0, 56, 40]]])
    pairs = list(ForegroundBackground()(KnowledgeInput(output(0), output(1), boxes, strides)))
    assert len(pairs) == 4
    for (foreground, background), cells in zip((pairs[:2], pairs[2:]), ((64, 5 * 7), (16, 3 * 4)), strict=True):
        assert (foreground.weight > 0).flatten(1).sum(1).tolist() == list(cells)
        assert (background.weight > 0).sum() == 0
        assert torch.equal(foreground.student[1] != 0, (foreground.weight[1] > 0).expand_as(foreground.student[1]))


def test_foreground_and_background_share_out_the_valid_area(output, targets, strides):
    boxes = targets([[[3, 5, 30, 22], [28, 20, 61, 64]], [[50, 30, 52, 33]]])
    student, teacher = output(0), output(1)
    for level, (foreground, background) in zip(
        strides,
        zip(*[iter(ForegroundBackground()(KnowledgeInput(student, teacher, boxes, strides)))] * 2, strict=True),
        strict=True,
    ):
        covered = (foreground.weight > 0).int() + (background.weight > 0).int()
        side = 64 // strides[level]
        valid = torch.zeros(2, 1, side, side, dtype=torch.int)
        valid[0], valid[1, :, : -(-40 // strides[level]), : -(-56 // strides[level])] = 1, 1
        assert torch.equal(covered, valid)
        both = foreground.teacher + background.teacher
        assert torch.equal(both, teacher.features[level] * valid)
        assert torch.equal(background.weight, (background.weight > 0).float())


def test_factors(output, targets, strides):
    boxes = targets([[], []])
    assert [p.factor for p in ForegroundBackground()(KnowledgeInput(output(0), output(1), boxes, strides))] == [
        1.0,
        0.5,
        1.0,
        0.5,
    ]
    pairs = ForegroundBackground(background=0.25)(KnowledgeInput(output(0), output(1), boxes, strides))
    assert [pair.factor for pair in pairs] == [1.0, 0.25, 1.0, 0.25]


def test_without_objects_the_foreground_is_nothing(output, targets, strides):
    foreground, background, *_ = ForegroundBackground()(
        KnowledgeInput(output(0), output(1), targets([[], []]), strides)
    )
    assert not foreground.weight.any() and not foreground.student.any()
    assert foreground.mean((foreground.student - foreground.teacher).abs()) == 0
    assert background.weight.flatten(1).sum(1).tolist() == [64, 35]


def test_an_object_of_one_cell_counts_as_much_as_one_of_sixteen(output, targets, strides):
    boxes = targets([[[0, 0, 8, 8], [32, 32, 64, 64]], []])
    foreground, *_ = ForegroundBackground()(KnowledgeInput(output(0), output(1), boxes, strides))
    assert foreground.weight[0, 0, 0, 0] == 1 and foreground.weight[0, 0, 4:, 4:].sum() == pytest.approx(1)
    assert foreground.weight.sum() == pytest.approx(2)


def test_targets_are_needed(output, strides):
    with pytest.raises(ValueError, match="knowledge 'fgbg' needs the targets of the batch"):
        list(ForegroundBackground()(KnowledgeInput(output(0), output(1), None, strides)))


def test_binary_masks_of_assigned_objects_balanced_by_image_in_whole_maps(output, targets, strides):
    """The large box belongs to the coarser level; on the finer one it is background."""
    student, teacher = output(0), output(1)
    boxes = targets([[[0, 0, 16, 24], [0, 0, 500, 500]], [[8, 8, 24, 16]]])
    knowledge = ForegroundBackground(mask="binary", assign="fpn", balance="image", cut=False, background=4)
    fine, fine_rest, coarse, coarse_rest = knowledge(KnowledgeInput(student, teacher, boxes, strides))
    expected = torch.zeros(2, 1, 8, 8)
    expected[0, :, :3, :2], expected[1, :, 1, 1:3] = 1, 1
    assert torch.equal(fine.weight, expected)
    torch.testing.assert_close(fine_rest.weight.sum((1, 2, 3)), torch.ones(2))
    assert fine_rest.weight[0].max().item() == pytest.approx(1 / (64 - 6)) and fine_rest.factor == 4
    assert fine_rest.weight[1].max().item() == pytest.approx(1 / (35 - 2))
    assert coarse.weight[0].sum() == 16 and coarse.weight[1].sum() == 0 and not coarse_rest.weight[0].any()
    assert all(pair.student is student.features["p3"] for pair in (fine, fine_rest))


@pytest.mark.parametrize("fault", [{"background": -1.0}, {"mask": "oval"}, {"background": 0, "balance": "world"}])
def test_arguments_are_checked(fault):
    with pytest.raises(ValueError, match="expected"):
        ForegroundBackground(**fault)
    assert ForegroundBackground(background=0).background == 0
