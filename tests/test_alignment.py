"""What answers to what: levels by stride, classes by name, queries by what they predict."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import box_convert, generalized_box_iou

from detkds import Distiller, Policy
from detkds.alignment import align_responses, match_levels, match_queries, response_mismatch
from detkds.policy import Term
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, Layout

QUERY = Layout("query", "sigmoid", 3, 1, "centre", class_names=("ant", "bee", "cat"))


def _info(**strides: float) -> DetectorInfo:
    return DetectorInfo({name: FeatureSpec(8, stride) for name, stride in strides.items()})


def _joined(student: DetectorInfo, teacher: DetectorInfo) -> dict[str, str]:
    return {name: match.teacher for name, match in match_levels(student, teacher).items()}


def test_levels_of_equal_stride_answer_to_each_other() -> None:
    assert _joined(_info(p3=8, p4=16, p5=32), _info(c2=4, c3=8, c4=16)) == {"p3": "c3", "p4": "c4"}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ({"p3": 8, "p4": 16, "p5": 32}, {"vit": 14}, {"p4": "vit"}),
        ({"c5": 32}, {"a": 14, "b": 28}, {"c5": "b"}),
        ({"p3": 8, "p4": 16}, {"a": 8 / 1.5, "b": 16 / 1.5, "c": 32 / 1.5}, {"p3": "b", "p4": "c"}),
        ({"p3": 8}, {"a": 17}, {}),
    ],
)
def test_where_no_stride_agrees_the_nearest_are_resized(ours: dict, theirs: dict, expected: dict) -> None:
    student, teacher = _info(**ours), _info(**theirs)
    assert _joined(student, teacher) == expected
    assert all(match.resized for match in match_levels(student, teacher).values())


def test_maps_are_compared_at_the_teachers_stride() -> None:
    """A student's stride of 8 and a teacher's of 16 give maps of the teacher's size, and boxes fall on its cells."""
    student, teacher = _info(p3=8), _info(c4=16)
    distiller = Distiller(Policy([Term("fgbg", (), "l2", 1.0)]), student=student, teacher=teacher)
    assert distiller.strides == {"p3": 16}
    sizes, targets = (
        torch.tensor([[64, 64]]),
        [{"boxes": torch.tensor([[0.0, 0, 16, 16]]), "labels": torch.tensor([0])}],
    )
    theirs = torch.zeros(1, 8, 4, 4)
    theirs[:, :, 0, 0] = 1.0  # the one cell of the box
    ours = DetectorOutput({"p3": torch.zeros(1, 8, 8, 8)}, sizes)
    losses = distiller(ours, DetectorOutput({"c4": theirs}, sizes), targets)
    assert losses["fgbg/l2"].item() == pytest.approx(1.0)


def test_dense_responses_need_cells_of_equal_stride() -> None:
    layout = Layout("dense", "sigmoid", 3, 1, "sides", "key")
    student = DetectorInfo({"p3": FeatureSpec(8, 8)}, layout)
    teacher = DetectorInfo({"p4": FeatureSpec(8, 12)}, layout)
    assert "cells" in str(response_mismatch(student, teacher))
    assert response_mismatch(student, student) is None


def test_a_teacher_of_more_classes_answers_by_name() -> None:
    wide = Layout("dense", "sigmoid", 4, 1, "sides", "key", ("cat", "dog", "ant", "bee"))
    narrow = Layout("dense", "sigmoid", 2, 1, "sides", "key", ("ant", "cat"))
    assert narrow.mismatch(wide) is None and "dog" in str(wide.mismatch(narrow))
    sizes = torch.tensor([[16, 16]])
    ours = DetectorOutput({}, sizes, narrow, logits={"p3": torch.zeros(1, 2, 1, 2, 2)})
    scores = torch.arange(4.0)[None, :, None, None, None].expand(1, 4, 1, 2, 2)
    _, theirs = align_responses(ours, DetectorOutput({}, sizes, wide, logits={"c3": scores}), {"p3": "c3"})
    assert theirs.logits["p3"][0, :, 0, 0, 0].tolist() == [2.0, 0.0]  # ant, cat


def test_the_background_column_stays_first() -> None:
    wide = Layout("region", "softmax", 3, 1, "deltas", class_names=("cat", "dog", "ant"))
    narrow = Layout("region", "softmax", 2, 1, "deltas", class_names=("ant", "cat"))
    assert narrow.columns(wide) == [0, 3, 1]
    assert wide.columns(wide) is None


def _queries(generator: torch.Generator, queries: int, images: int = 2) -> DetectorOutput:
    logits = torch.randn(images, 3, queries, generator=generator) * 2
    centred = torch.rand(images, queries, 4, generator=generator) * 0.4 + 0.2
    boxes = box_convert(centred, "cxcywh", "xyxy") * torch.tensor([96.0, 64, 96, 64])
    output = DetectorOutput({}, torch.tensor([[64, 96]] * images), QUERY)
    output.logits, output.boxes = {"query": logits}, {"query": boxes.transpose(1, 2)}
    output.regression = {"query": torch.logit(centred).transpose(1, 2)}
    return output


def _cost(student: DetectorOutput, teacher: DetectorOutput, image: int, ours: int, theirs: int) -> Tensor:
    """The cost of one pair, from the definitions."""
    scale = torch.tensor([96.0, 64, 96, 64])
    logits = student.logits["query"][image, :, ours], teacher.logits["query"][image, :, theirs]
    first = student.boxes["query"][image, :, ours] / scale
    second = teacher.boxes["query"][image, :, theirs] / scale
    classes = binary_cross_entropy_with_logits(logits[0], logits[1].sigmoid(), reduction="sum")
    l1 = (box_convert(first, "xyxy", "cxcywh") - box_convert(second, "xyxy", "cxcywh")).abs().sum()
    return classes + 5 * l1 + 2 * (1 - generalized_box_iou(first[None], second[None])[0, 0])


@pytest.mark.parametrize(("ours", "theirs"), [(4, 4), (3, 4), (4, 3)])
def test_queries_are_matched_at_least_cost(ours: int, theirs: int) -> None:
    """Against every assignment there is."""
    generator = torch.Generator().manual_seed(ours * 10 + theirs)
    student, teacher = _queries(generator, ours), _queries(generator, theirs)
    images, rows, columns = (found.tolist() for found in match_queries(student, teacher))
    for image in range(2):
        chosen = [(r, c) for i, r, c in zip(images, rows, columns, strict=True) if i == image]
        found = sum(float(_cost(student, teacher, image, *pair)) for pair in chosen)
        count = min(ours, theirs)
        least = min(
            sum(float(_cost(student, teacher, image, r, c)) for r, c in zip(left, right, strict=True))
            for left in itertools.combinations(range(ours), count)
            for right in itertools.permutations(range(theirs), count)
        )
        assert len(chosen) == count and found == pytest.approx(least, rel=1e-5)


def test_the_order_of_queries_means_nothing() -> None:
    """A teacher that says the same in another order gives a loss of 0, and gradient reaches the student alone."""
    generator = torch.Generator().manual_seed(3)
    student = _queries(generator, 5)
    order = torch.randperm(5, generator=generator)
    teacher = _queries(generator, 5)
    for field in ("logits", "boxes", "regression"):
        getattr(teacher, field)["query"] = getattr(student, field)["query"][..., order].clone()
    info = DetectorInfo({"p3": FeatureSpec(4, 8)}, QUERY)
    terms = [Term("logits", (), "l2", 1.0), Term("localization", ("decode",), "giou", 2.0)]
    distiller = Distiller(Policy(terms), student=info, teacher=info)
    student.features, teacher.features = {"p3": torch.zeros(2, 4, 8, 12)}, {"p3": torch.zeros(2, 4, 8, 12)}
    student.logits["query"].requires_grad_(True)
    losses = distiller(student, teacher)
    assert all(loss.item() == pytest.approx(0, abs=1e-6) for loss in losses.values())
    teacher.logits["query"] = teacher.logits["query"] + 1
    distiller(student, teacher)["logits/l2"].backward()
    assert student.logits["query"].grad is not None and student.logits["query"].grad.abs().sum() > 0


def test_a_diverging_student_is_matched_all_the_same() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = _queries(generator, 4), _queries(generator, 4)
    student.boxes["query"][0] = torch.nan
    images, _, _ = match_queries(student, teacher)
    assert len(images) == 8
