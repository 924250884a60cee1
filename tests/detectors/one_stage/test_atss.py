"""Adaptive selection against a slow loop over objects and levels, and hand-worked cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from detkds.detectors import matching
from detkds.detectors.matching import BACKGROUND, IGNORED, Objects
from detkds.detectors.one_stage.atss import match_adaptively, valuable_region
from detkds.structures import Target


def _grid(strides: list[int], side: int, scale: float = 8) -> list[Tensor]:
    levels = []
    for stride in strides:
        half = scale * stride / 2
        cells = range(math.ceil(side / stride))
        rows = [
            [x * stride - half, y * stride - half, x * stride + half, y * stride + half] for y in cells for x in cells
        ]
        levels.append(torch.tensor(rows))
    return levels


def _objects(count: int, generator: torch.Generator, side: float = 96) -> Tensor:
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * side
    size = 4 + torch.rand(count, 2, generator=generator, dtype=torch.float64) * side
    return torch.cat((corner, corner + size), dim=1).float()


def _target(boxes: Tensor, crowds: Tensor | None = None) -> Target:
    target = Target(boxes=boxes, labels=torch.arange(len(boxes)))
    if crowds is not None:
        target["crowd_boxes"] = crowds
    return target


def _shared(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _slow(levels: list[Tensor], target: Target, candidates: int) -> list[int]:
    """Algorithm 1, object by object and anchor by anchor."""
    anchors = torch.cat(levels).tolist()
    best = [0.0] * len(anchors)
    matched = [BACKGROUND] * len(anchors)
    for number, box in enumerate(target["boxes"].tolist()):
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        chosen, start = [], 0
        for level in levels:
            distances = []
            for row in range(start, start + len(level)):
                x, y = (anchors[row][0] + anchors[row][2]) / 2, (anchors[row][1] + anchors[row][3]) / 2
                distances.append((math.hypot(x - center[0], y - center[1]), row))
            chosen += [row for _, row in sorted(distances)[:candidates]]
            start += len(level)
        ious = []
        for row in chosen:
            shared = _shared(box, anchors[row])
            ious.append(shared / (_area(box) + _area(anchors[row]) - shared))
        mean = sum(ious) / len(ious)
        deviation = math.sqrt(sum((iou - mean) ** 2 for iou in ious) / max(len(ious) - 1, 1))
        for row, iou in zip(chosen, ious, strict=True):
            x, y = (anchors[row][0] + anchors[row][2]) / 2, (anchors[row][1] + anchors[row][3]) / 2
            inside = box[0] < x < box[2] and box[1] < y < box[3]
            if iou >= mean + deviation and inside and iou > best[row]:
                best[row], matched[row] = iou, number
    for row, anchor in enumerate(anchors):
        crowds = target.get("crowd_boxes", torch.zeros(0, 4)).tolist()
        if matched[row] == BACKGROUND and any(_shared(anchor, crowd) > 0.5 * _area(anchor) for crowd in crowds):
            matched[row] = IGNORED
    return matched


@pytest.mark.parametrize("pairs_at_once", [2**24, 500])
@pytest.mark.parametrize("candidates", [9, 3])
def test_equals_the_slow_loop(
    pairs_at_once: int, candidates: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_MOST_PAIRS", pairs_at_once)
    levels = _grid([8, 16, 32, 64, 128], 128)  # the coarsest have fewer anchors than candidates
    overlapping = _objects(1, generator) + torch.rand(6, 4, generator=generator) * 5
    flat = torch.tensor([[20.0, 20, 20, 60]])
    targets = [
        _target(_objects(8, generator), _objects(3, generator, 128)),
        _target(torch.zeros(0, 4)),
        _target(torch.cat((overlapping, flat, _objects(2, generator)))),
        _target(torch.zeros(0, 4), _objects(2, generator, 128)),
    ]
    found = match_adaptively(levels, Objects.collect(targets), candidates)
    expected = [_slow(levels, target, candidates) for target in targets]
    assert found.tolist() == expected
    assert {IGNORED, BACKGROUND, 0, 1} <= set(expected[0]) and IGNORED in expected[3]
    assert len(set(expected[2]) & set(range(6))) >= 2 and set(expected[1]) == {BACKGROUND}


def test_by_hand() -> None:
    # Four anchors of side 4 at x = 0, 2, 4, 6 and an object on the second: IoUs 1/3, 1, 1/3, 0 of its candidates.
    # Mean 5/12 and deviation 0.419 (over n - 1): the threshold is 0.836.
    level = torch.tensor([[x - 2.0, 0, x + 2, 4] for x in (0, 2, 4, 6)])
    box = torch.tensor([[0.0, 0, 4, 4]])
    assert match_adaptively([level], Objects.collect([_target(box)])).tolist() == [[BACKGROUND, 0, *[BACKGROUND] * 2]]
    # Its two nearest alone, 1 and 1/3: the threshold is 2/3 + 0.471 > 1, so that nothing is good enough.
    assert match_adaptively([level], Objects.collect([_target(box)]), 2).tolist() == [[BACKGROUND] * 4]
    # A single candidate deviates by nothing from its own mean.
    assert match_adaptively([level], Objects.collect([_target(box)]), 1).tolist() == [
        [BACKGROUND, 0, *[BACKGROUND] * 2]
    ]


def test_an_anchor_takes_the_object_of_highest_iou_and_of_equals_the_first() -> None:
    levels = _grid([8], 64, scale=2)
    near, nearer = [17.0, 17, 33, 33], [16.0, 16, 32, 32]
    for boxes, winner in (([near, nearer], 1), ([nearer, near], 0), ([nearer, nearer], 0)):
        matched = match_adaptively(levels, Objects.collect([_target(torch.tensor(boxes))]))[0]
        assert matched[3 * 8 + 3] == winner


def test_a_center_on_the_edge_is_outside() -> None:
    level = torch.tensor([[0.0, 0, 8, 8], [20, 0, 28, 8]])
    within = torch.tensor([[3.9, 0, 12, 8]])
    for edge in ([4.0, 0, 12, 8], [-4.0, 0, 4, 8], [0.0, 4, 8, 12], [0.0, -4, 8, 4]):
        objects = Objects.collect([_target(torch.tensor([edge]))])
        assert match_adaptively([level], objects, 1).tolist() == [[BACKGROUND] * 2]
    assert match_adaptively([level], Objects.collect([_target(within)]), 1).tolist() == [[0, BACKGROUND]]


def test_the_valuable_region_has_its_lower_end_and_not_its_upper() -> None:
    """The only candidate is the box, so that the threshold is 1; the DIoU of the other anchor is 1/2 - 4/128."""
    level = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4]])
    objects = Objects.collect([_target(torch.tensor([[0.0, 0, 8, 8]]))])
    assert valuable_region([level], objects, 1, 0.46875).tolist() == [[0.0, 0.5]]


def _slow_region(levels: list[Tensor], target: Target) -> list[float]:
    """LD's region, object by object: DIoU from a quarter of the IoU threshold up to it, weighted by IoU."""
    anchors = torch.cat(levels).tolist()
    weights = [0.0] * len(anchors)
    for box in target["boxes"].tolist():
        overlaps, center = [], ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        for level in levels:
            near = sorted(level.tolist(), key=lambda one: math.dist(center, _middle(one)))[:9]
            overlaps += [_iou(one, box) for one in near]
        mean = sum(overlaps) / len(overlaps)
        threshold = mean + math.sqrt(sum((one - mean) ** 2 for one in overlaps) / (len(overlaps) - 1))
        for row, anchor in enumerate(anchors):
            outer = [min(anchor[0], box[0]), min(anchor[1], box[1]), max(anchor[2], box[2]), max(anchor[3], box[3])]
            diagonal = (outer[2] - outer[0]) ** 2 + (outer[3] - outer[1]) ** 2
            diou = _iou(anchor, box) - math.dist(center, _middle(anchor)) ** 2 / diagonal
            if 0.25 * threshold <= diou < threshold:
                weights[row] = max(weights[row], _iou(anchor, box))
    return weights


def _middle(box: list[float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _iou(one: list[float], other: list[float]) -> float:
    shared = _shared(one, other)
    return shared / (_area(one) + _area(other) - shared)


def test_valuable_region_equals_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    levels = _grid([8, 16, 32], 96)
    targets = [_target(_objects(count, generator)) for count in (3, 0, 1)]
    expected = torch.tensor([_slow_region(levels, target) for target in targets])
    assert (expected[0] > 0).sum() > 3 and not expected[1].any()
    torch.testing.assert_close(valuable_region(levels, Objects.collect(targets)), expected)
    monkeypatch.setattr(matching, "_MOST_PAIRS", 1)  # image by image
    torch.testing.assert_close(valuable_region(levels, Objects.collect(targets)), expected)


def test_an_only_candidate_reaches_its_own_threshold() -> None:
    """The threshold is its IoU itself, with no deviation around it."""
    target = Target(boxes=torch.tensor([[0.0, 0, 8, 8]]), labels=torch.tensor([0]))
    matched = match_adaptively([torch.tensor([[0.0, 0, 8, 12]])], Objects.collect([target]))
    assert matched.tolist() == [[0]]
