"""Queries joined through the ground truth, against a choice by all permutations and numbers worked by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from detkds import Policy, load_policy
from detkds.distiller import Distiller, check_pair
from detkds.errors import PairError
from detkds.knowledge.objects import ObjectLocalization, ObjectLogits
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, KnowledgeInput, Layout, Target

LAYOUT = Layout("query", "sigmoid", num_classes=3, regression="centre", bins="b")
INFO = DetectorInfo({"p3": FeatureSpec(4, 8)}, LAYOUT)
SIZE, QUERIES, BINS = 64, 5, 4
BOXES = torch.tensor([[4.0, 4.0, 24.0, 24.0], [30.0, 30.0, 62.0, 60.0], [6.0, 40.0, 20.0, 62.0]])
LABELS = torch.tensor([0, 2, 1])


def output(seed: int, shake: float = 2.0, shift: int = 0) -> DetectorOutput:
    """Two images, of which the first five queries see the three objects in turn from ``shift`` on, shaken."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, QUERIES, generator=generator)
    order = [(query + shift) % 3 for query in range(QUERIES)]
    boxes = BOXES[order].T + shake * torch.randn(2, 4, QUERIES, generator=generator)
    low, high = boxes[:, :2] / SIZE, boxes[:, 2:] / SIZE
    numbers = torch.logit(torch.cat([(low + high) / 2, high - low], 1))
    sides = torch.randn(2, 4, BINS, QUERIES, generator=generator)
    return DetectorOutput(
        {"p3": torch.zeros(2, 4, 8, 8)},
        torch.tensor([[SIZE, SIZE]] * 2),
        LAYOUT,
        {"query": logits.requires_grad_()},
        {"query": numbers.requires_grad_()},
        {"query": boxes.requires_grad_()},
        {"query": sides.requires_grad_()},
    )


def targets() -> list[Target]:
    return [Target(boxes=BOXES, labels=LABELS), Target(boxes=BOXES[:1], labels=LABELS[:1])]


def cost(side: DetectorOutput, image: int, query: int, box: torch.Tensor, label: int) -> float:
    p = side.logits["query"][image, label, query].sigmoid().item()
    focal = -0.25 * (1 - p) ** 2 * math.log(p + 1e-8) + 0.75 * p**2 * math.log(1 - p + 1e-8)
    own = side.boxes["query"][image, :, query].detach()

    def centred(corners: list[float]) -> list[float]:
        x1, y1, x2, y2 = (number / SIZE for number in corners)
        return [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]

    apart = sum(abs(a - b) for a, b in zip(centred(own.tolist()), centred(box.tolist()), strict=True))
    return 2 * focal + 5 * apart + 2 * generalized_box_iou_loss(own, box).item()


def answering(side: DetectorOutput, image: int, objects: Target) -> tuple[int, ...]:
    """The queries of the least total cost, of all that can be chosen."""
    rows = list(zip(objects["boxes"], objects["labels"].tolist(), strict=True))
    chosen = itertools.permutations(range(QUERIES), len(rows))
    return min(chosen, key=lambda qs: sum(cost(side, image, q, *row) for q, row in zip(qs, rows, strict=True)))


def test_dfine_cross_is_that_of_loops() -> None:
    student, teacher = output(0), output(1, shift=1)
    losses = Distiller(load_policy("dfine-cross"), student=INFO, teacher=INFO)(student, teacher, targets())
    classes = boxes = overlaps = sides = 0.0
    count = 0
    for image, objects in enumerate(targets()):
        pairs = zip(answering(student, image, objects), answering(teacher, image, objects), strict=True)
        for (s, t), box, label in zip(pairs, objects["boxes"], objects["labels"].tolist(), strict=True):
            z, p = (
                student.logits["query"][image, label, s].item(),
                teacher.logits["query"][image, label, t].sigmoid().item(),
            )
            q = 1 / (1 + math.exp(-z))
            classes += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
            numbers = [
                side.regression["query"][image, :, k].sigmoid().tolist() for side, k in ((student, s), (teacher, t))
            ]
            boxes += sum(abs(a - b) for a, b in zip(*numbers, strict=True))
            corners = [side.boxes["query"][image, :, k].detach() for side, k in ((student, s), (teacher, t))]
            overlaps += 2 * generalized_box_iou_loss(*corners).item()
            x1, y1, x2, y2 = torch.cat(
                [torch.maximum(corners[0][:2], box[:2]), torch.minimum(corners[0][2:], box[2:])]
            ).tolist()
            inner = max(0.0, x2 - x1) * max(0.0, y2 - y1)
            areas = [((one[2] - one[0]) * (one[3] - one[1])).item() for one in (corners[0], box)]
            for side in range(4):
                wanted = (teacher.box_distribution["query"][image, side, :, t] / 5).softmax(0)
                own = (student.box_distribution["query"][image, side, :, s] / 5).softmax(0)
                divergence = 25 * (wanted * (wanted / own).log()).sum().item()
                sides += 1.5 * inner / (sum(areas) - inner) * divergence / 4
            count += 1
    expected = [total / count for total in (classes, boxes, overlaps, sides)]
    assert count == 4
    assert [loss.item() for loss in losses.values()] == pytest.approx(expected, rel=1e-4)


def test_what_the_teacher_misses_is_left_out() -> None:
    inputs = aligned(output(0), output(1, shake=0.0))
    assert len(next(ObjectLogits()(inputs)).student) == 4
    blind = output(1, shake=0.0)
    blind.boxes["query"] = torch.zeros(2, 4, QUERIES)
    assert len(next(ObjectLogits()(aligned(output(0), blind))).student) == 0
    policy = Policy(list(load_policy("dfine-cross")))
    losses = Distiller(policy, student=INFO, teacher=INFO)(output(0), blind, targets())
    assert all(loss.item() == 0 for loss in losses.values())


def aligned(student: DetectorOutput, teacher: DetectorOutput) -> KnowledgeInput:
    from detkds.alignment import align_responses

    return KnowledgeInput(*align_responses(student, teacher, {}), targets(), {"p3": 8})


def test_more_objects_than_queries_leave_some_out() -> None:
    many = [Target(boxes=BOXES.repeat(3, 1), labels=LABELS.repeat(3)), Target(boxes=BOXES[:0], labels=LABELS[:0])]
    inputs = aligned(output(0, shake=0.0), output(1, shake=0.0))
    pair = next(ObjectLocalization(least_iou=0)(KnowledgeInput(inputs.student, inputs.teacher, many, inputs.levels)))
    assert 0 < len(pair.student) <= QUERIES


def test_others_than_queries_are_refused() -> None:
    dense = DetectorInfo(INFO.features, Layout("dense", "sigmoid", 3, 1, "sides"))
    with pytest.raises(PairError, match="joined between the queries of two detectors; student dense"):
        check_pair(load_policy("dfine-cross"), dense, INFO)
