"""A teacher that sees larger images says the same of the batch's pixels as where it is given them directly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from detkds import Distiller, load_policy
from detkds.detectors import Detector
from detkds.detectors.rescaled import Rescaled
from detkds.structures import Batch

Build = Callable[..., Detector]


def _larger(batch: Batch) -> Batch:
    """The batch at twice its size, by hand."""
    assert batch.targets is not None
    images = F.interpolate(batch.images, scale_factor=2, mode="bilinear")
    targets = [{**target, "boxes": target["boxes"] * 2} for target in batch.targets]
    return replace(batch, images=images, image_sizes=batch.image_sizes * 2, targets=targets)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_outputs_come_back_in_the_batch_s_pixels(name: str, small: Build, batch: Batch) -> None:
    inner = small(name).eval()
    outer = Rescaled(inner, 2)
    assert [spec.stride for spec in outer.info.features.values()] == [4, 8, 16, 32, 64]
    with torch.no_grad():
        ours, direct = outer(batch), inner(_larger(batch))
    for level in direct.features:
        torch.testing.assert_close(ours.features[level], direct.features[level], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.boxes[level] * 2, direct.boxes[level], rtol=1e-4, atol=1e-3)
    restored = outer.restore(replace(ours, boxes={}))
    assert restored is not None
    assert all(torch.equal(restored.boxes[level], ours.boxes[level]) for level in ours.boxes)
    assert torch.equal(ours.image_sizes, batch.image_sizes)


def test_predictions_and_losses_are_those_of_the_larger_images(small: Build, batch: Batch) -> None:
    inner = small("retinanet", score_threshold=0.0)
    outer = Rescaled(inner, 2)
    losses, direct = outer.train()(batch).losses, inner.train()(_larger(batch)).losses
    for key in direct:
        torch.testing.assert_close(losses[key], direct[key], rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        ours, theirs = outer.eval().predict(batch), inner.eval().predict(_larger(batch))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.boxes * 2, other.boxes, rtol=1e-3, atol=1e-2)


def test_region_heads_are_asked_about_the_batch_s_pixels(small: Build, batch: Batch) -> None:
    inner = small("faster_rcnn").eval()
    proposals = [torch.tensor([[8.0, 8, 60, 70]]), torch.tensor([[20.0, 16, 100, 96], [0, 0, 40, 40]])]
    with torch.no_grad():
        ours, direct = Rescaled(inner, 2)(batch).respond_at, inner(_larger(batch)).respond_at
        assert ours is not None and direct is not None
        found, expected = ours(proposals), direct([one * 2 for one in proposals])
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.boxes * 2, expected.boxes, rtol=1e-4, atol=1e-3)


def test_its_levels_answer_by_pixels_of_the_batch(small: Build, batch: Batch) -> None:
    """At twice the size, the teacher's p4 covers as many pixels of the batch as the student's p3."""
    student, inner = small("retinanet"), small("retinanet", seed=1)
    teacher = Rescaled(inner, 2)
    distiller = Distiller(load_policy("pkd"), student=student, teacher=teacher)
    assert {name: match.teacher for name, match in distiller.levels.items()} == {
        "p3": "p4", "p4": "p5", "p5": "p6", "p6": "p7",
    }  # fmt: skip
    assert student.inherit(teacher) == student.inherit(inner)
    loss = distiller(student.train()(batch), teacher.eval()(batch), batch.targets)["global/l2"]
    assert torch.isfinite(loss) and loss > 0


def test_a_size_that_does_not_divide_loses_nothing(small: Build, batch_of: Callable[..., Batch]) -> None:
    batch = batch_of([[[3, 3, 40, 50]], []], (97, 131))
    for scale in (0.6, 1.3):
        teacher = Rescaled(small("fcos").eval(), scale)
        output = teacher(batch)
        for level, spec in teacher.info.features.items():
            height, width = output.features[level].shape[-2:]
            assert height * spec.stride >= 97 and width * spec.stride >= 131


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_a_rescaled_student_marks_regions_of_boxes_in_the_batch_s_pixels(name: str, small: Build, batch: Batch) -> None:
    """As for the objects themselves where their boxes are given; each other box somewhere else."""
    assert batch.targets is not None
    output = Rescaled(small(name).train(), 2)(batch)
    assert output.region is not None
    boxes = [target["boxes"] for target in batch.targets]
    marked, given, moved = (output.region("main", one) for one in (None, boxes, [one + 8 for one in boxes]))
    assert all(torch.equal(given[level], weights) for level, weights in marked.items())
    assert any(not torch.equal(moved[level], weights) for level, weights in marked.items())
