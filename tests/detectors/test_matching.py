"""Matching against torchvision's matcher image by image, loops, and hand-worked crowds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from detkds.detectors import matching
from detkds.detectors.matching import (
    BACKGROUND,
    IGNORED,
    Objects,
    inside_crowd,
    match_by_center,
    match_by_iou,
    match_nearest_point,
)
from detkds.structures import Target


def _boxes(count: int, generator: torch.Generator, most: float = 100) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * most
    return torch.cat((corner, corner + 2 + torch.rand(count, 2, generator=generator) * most / 2), dim=1)


def _targets(counts: list[int], generator: torch.Generator) -> list[Target]:
    return [Target(boxes=_boxes(n, generator), labels=torch.arange(n)) for n in counts]


@pytest.mark.parametrize("pairs_at_once", [2**24, 500])
def test_equals_torchvisions_matcher(
    pairs_at_once: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_MOST_PAIRS", pairs_at_once)
    anchors = torch.cat((_boxes(200, generator), _boxes(200, generator, 60)))
    targets = _targets([5, 1, 0, 9], generator)
    targets[0]["boxes"][0] = anchors[7]  # IoU 1, and a tie
    anchors[8] = anchors[7]
    matched = match_by_iou(anchors, Objects.collect(targets), 0.5, 0.4)
    reference = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    for row, target in zip(matched, targets, strict=True):
        expected = torch.full((400,), BACKGROUND)
        if len(target["boxes"]):
            expected = reference(box_iou(target["boxes"], anchors))
        assert torch.equal(row, expected)
    assert {int(v) for v in matched[0].unique()} >= {IGNORED, BACKGROUND, 0}


@pytest.mark.parametrize("pairs_at_once", [2**24, 500])
def test_boxes_of_each_image(pairs_at_once: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_MOST_PAIRS", pairs_at_once)
    boxes = torch.stack([_boxes(90, generator) for _ in range(4)])
    boxes[:, ::9, 2:] = boxes[:, ::9, :2]  # without area
    targets = _targets([5, 1, 0, 9], generator)
    for target in targets[1:]:
        target["crowd_boxes"] = torch.tensor([[0.0, 0, 60, 60]])
    matched = match_by_iou(boxes, Objects.collect(targets), 0.5, 0.4)
    for row, image, target in zip(matched, boxes, targets, strict=True):
        assert torch.equal(row, match_by_iou(image, Objects.collect([target]), 0.5, 0.4)[0])
    assert (matched[2] == IGNORED).any() and (matched[2] == BACKGROUND).any()


def test_best_anchor_of_an_object_is_rescued() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    targets = [Target(boxes=torch.tensor([[0.0, 0, 40, 40]]), labels=torch.tensor([0]))]  # IoU 1/16
    assert match_by_iou(anchors, Objects.collect(targets), 0.5, 0.4).tolist() == [[0, BACKGROUND]]


def test_boxes_without_area_match_nothing() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10]])
    flat = [Target(boxes=torch.tensor([[0.0, 0, 10, 0], [5, 5, 5, 9]]), labels=torch.tensor([0, 1]))]
    assert match_by_iou(anchors, Objects.collect(flat), 0.5, 0.4).tolist() == [[BACKGROUND]]
    assert match_by_center(anchors, Objects.collect(flat), 1.5, 1, 1).tolist() == [[BACKGROUND]]


def test_crowds_turn_background_to_ignored_only() -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [6, 0, 16, 10], [4, 0, 14, 10], [0, 0, 10, 10.5]])
    target = Target(
        boxes=torch.tensor([[0.0, 0, 10, 10.5]]),
        labels=torch.tensor([0]),
        crowd_boxes=torch.tensor([[0.0, 0, 10, 10], [90, 90, 99, 99]]),
    )
    plain = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    # shares inside the crowd: 1, 0.4, 0.6, 0.95; the first and last are positive and stay so
    matched = match_by_iou(anchors, Objects.collect([target, plain]), 0.5, 0.45)
    assert matched.tolist() == [[0, BACKGROUND, IGNORED, 0], [BACKGROUND] * 4]


def test_thresholds_belong_to_the_better_side() -> None:
    """IoUs of 1, 1/2 and 1/4: an anchor takes the object from 1/2, and is background below 1/4, not at it."""
    anchors = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 16], [0, 0, 16, 16], [0, 0, 16, 17]])
    target = Target(boxes=torch.tensor([[0.0, 0, 8, 8]]), labels=torch.tensor([0]))
    assert match_by_iou(anchors, Objects.collect([target]), 0.5, 0.25).tolist() == [[0, 0, IGNORED, BACKGROUND]]


def test_an_object_that_no_anchor_touches_takes_none() -> None:
    anchors = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8]])
    target = Target(boxes=torch.tensor([[50.0, 50, 58, 58]]), labels=torch.tensor([0]))
    assert match_by_iou(anchors, Objects.collect([target]), 0.5, 0.25).tolist() == [[BACKGROUND] * 2]


def test_a_point_on_the_edge_of_a_box_is_outside() -> None:
    anchors = torch.tensor([[0.0, 0, 8, 8]])
    for x, expected in ((4.0, BACKGROUND), (3.9, 0)):
        target = Target(boxes=torch.tensor([[x, 0, 12, 8]]), labels=torch.tensor([0]))
        assert match_by_center(anchors, Objects.collect([target]), 1.5, 1, 1).tolist() == [[expected]]


def test_half_inside_a_crowd_is_not_mostly_inside() -> None:
    anchors = torch.tensor([[4.0, 0, 12, 8], [3.0, 0, 11, 8]])
    assert inside_crowd(anchors, torch.tensor([[0.0, 0, 8, 8]])).tolist() == [False, True]


def test_inside_crowd_by_loop(generator: torch.Generator) -> None:
    boxes, crowds = _boxes(30, generator), _boxes(4, generator)
    for box, inside in zip(boxes.tolist(), inside_crowd(boxes, crowds).tolist(), strict=True):
        shares = []
        for crowd in crowds.tolist():
            width = max(0.0, min(box[2], crowd[2]) - max(box[0], crowd[0]))
            height = max(0.0, min(box[3], crowd[3]) - max(box[1], crowd[1]))
            shares.append(width * height / ((box[2] - box[0]) * (box[3] - box[1])))
        assert inside == (max(shares) > 0.5)
    assert inside_crowd(boxes, crowds[:0]).tolist() == [False] * 30


def _points(sizes: list[int], side: int) -> list[Tensor]:
    levels = []
    for stride in sizes:
        centers = [(x * stride, y * stride) for y in range(side // stride) for x in range(side // stride)]
        half = stride / 2
        levels.append(torch.tensor([[x - half, y - half, x + half, y + half] for x, y in centers]))
    return levels


@pytest.mark.parametrize("pairs_at_once", [2**24, 500])
def test_center_matching_equals_torchvisions(
    pairs_at_once: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_MOST_PAIRS", pairs_at_once)
    levels = _points([8, 16, 32], 128)
    anchors = torch.cat(levels)
    targets = _targets([6, 0, 1], generator)
    targets[0]["boxes"][0] = torch.tensor([0.0, 0, 128, 128])
    targets[0]["boxes"][1] = torch.tensor([30.0, 30, 50, 50])
    targets[0]["boxes"][2] = torch.tensor([28.0, 28, 52, 52])  # the smaller of two wins
    taken: list[list[Tensor]] = []

    class Head(torch.nn.Module):
        def compute_loss(self, targets: object, outputs: object, anchors: object, matched: list[Tensor]) -> None:
            taken.append(matched)

    body = torch.nn.Identity()
    body.out_channels = 32  # type: ignore[assignment]
    reference = FCOS(body, 3, head=Head())
    reference.compute_loss(targets, {}, [anchors] * 3, [len(level) for level in levels])  # type: ignore[arg-type]
    matched = match_by_center(anchors, Objects.collect(targets), 1.5, len(levels[0]), len(levels[-1]))
    assert torch.equal(matched, torch.stack(taken[0]))
    assert {0, 1} <= {int(v) for v in matched[0].unique()}


def test_center_matching_ignores_points_in_crowds() -> None:
    levels = _points([8, 16], 64)
    target = Target(
        boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64), crowd_boxes=torch.tensor([[0.0, 0, 32, 32]])
    )
    matched = match_by_center(torch.cat(levels), Objects.collect([target]), 1.5, 64, 16)[0, :64].view(8, 8)
    # a cell of 8 px centerd at 8 i: i = 0 lies half (0.25 at the corner) inside, 1..3 fully, 4 half (not more)
    assert (matched == IGNORED).nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (1, 2, 3)]


def _nearest_by_loop(points: list[list[float]], strides: list[float], boxes: list[list[float]]) -> list[int]:
    """RepPoints' first assignment, object after object, with scale 4."""
    matched, distance = [BACKGROUND] * len(points), [math.inf] * len(points)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        if x2 <= x1 or y2 <= y1:
            continue
        level = math.floor(math.log2(math.sqrt((x2 - x1) * (y2 - y1)) / 4))
        stride = min(max(2.0**level, min(strides)), max(strides))
        best, least = -1, math.inf
        for row, (x, y) in enumerate(points):
            away = math.hypot((x - (x1 + x2) / 2) / (x2 - x1), (y - (y1 + y2) / 2) / (y2 - y1))
            if strides[row] == stride and away < least:
                best, least = row, away
        if least < distance[best]:
            matched[best], distance[best] = number, least
    return matched


def _cells(strides: list[int], side: int) -> tuple[Tensor, Tensor]:
    levels = _points(strides, side)
    points = torch.cat([(level[:, :2] + level[:, 2:]) / 2 for level in levels])
    return points, torch.cat([torch.full((len(level),), float(s)) for s, level in zip(strides, levels, strict=True)])


@pytest.mark.parametrize("pairs_at_once", [2**24, 500])
def test_nearest_point_equals_a_loop(
    pairs_at_once: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_MOST_PAIRS", pairs_at_once)
    points, strides = _cells([8, 16, 32], 128)
    targets = _targets([40, 0, 1, 12], generator)
    targets[3]["boxes"][2, 2:] = targets[3]["boxes"][2, :2]  # without area
    targets[3]["boxes"][3] = torch.tensor([0.0, 0, 128, 128])
    matched = match_nearest_point(points, strides, Objects.collect(targets), 4.0)
    for row, target in zip(matched.tolist(), targets, strict=True):
        assert row == _nearest_by_loop(points.tolist(), strides.tolist(), target["boxes"].tolist())
    assert 0 < int((matched[0] >= 0).sum()) < 40  # some went without


def test_nearest_point_by_hand() -> None:
    points, strides = _cells([8, 16, 32], 64)  # 64 points, then 16, then 4
    boxes = [
        [4.0, 4, 10, 10],  # size 6: below the finest level, so there; center (7, 7), nearest (8, 8)
        [8, 20, 24, 84],  # size 32: stride 8 exactly; center (16, 52), as near to (16, 48) as to (16, 56): the first
        [24, 24, 87.9, 87.9],  # size 63.9: still stride 8; the center (55.95, 55.95) is nearest to (56, 56)
        [0, 0, 64, 64],  # size 64: stride 16; center (32, 32)
        [8, 8, 72, 72],  # the same level; its center (40, 40) is as near to (32, 32) as to three others
        [0, 0, 999, 999],  # the coarsest level there is; nearest to (499, 499) is (32, 32)
    ]
    target = Target(boxes=torch.tensor(boxes), labels=torch.arange(6), crowd_boxes=torch.tensor([[0.0, 0, 64, 64]]))
    matched = match_nearest_point(points, strides, Objects.collect([target]), 4.0)[0]
    found = {int(row): int(matched[row]) for row in (matched != BACKGROUND).nonzero()}
    # (32, 32) at stride 16 is wanted twice, by object 3 from distance 0; object 4 goes without
    assert found == {8 + 1: 0, 6 * 8 + 2: 1, 7 * 8 + 7: 2, 64 + 2 * 4 + 2: 3, 64 + 16 + 3: 5}


def test_a_point_wanted_by_equals_takes_the_first() -> None:
    points, strides = _cells([8], 32)
    boxes = torch.tensor([[4.0, 8, 20, 24], [12, 8, 28, 24], [12, 8, 28, 24]])  # centers (12, 16), (20, 16) twice
    target = Target(boxes=boxes, labels=torch.arange(3))
    matched = match_nearest_point(points, strides, Objects.collect([target]), 4.0)[0].view(4, 4)
    # (12, 16) is as near to (8, 16) as to (16, 16), (20, 16) to (16, 16) and (24, 16): the first each
    assert matched[2].tolist() == [BACKGROUND, 0, 1, BACKGROUND]
    assert (matched >= 0).sum() == 2
