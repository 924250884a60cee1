"""FGFI against its loss, with the mask from the overlap of every single anchor."""

from __future__ import annotations

import math

import pytest


def iou(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def anchors(i, j, stride):
    for ratio in (0.5, 1.0, 2.0):
        width, height = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
        x, y = (j + 0.5) * stride, (i + 0.5) * stride
        yield x - width / 2, y - height / 2, x + width / 2, y + height / 2


def test_features_near_objects(case, valid):
    losses, distiller = case.distil("fgfi", step=400)
    expected = 0.0
    for (_, student, teacher), stride in zip(
        case.maps(lambda level, feature: distiller.adapters[f"{level} conv(3)"](feature)), (8, 16), strict=True
    ):
        total, cells = 0.0, 0
        side = len(teacher[0][0])
        for image in range(2):
            near = set()
            for box in case.targets[image]["boxes"].tolist():
                overlaps = {
                    (i, j): max(iou(anchor, box) for anchor in anchors(i, j, stride))
                    for i in range(side)
                    for j in range(side)
                }
                near |= {cell for cell, value in overlaps.items() if value > 0.5 * max(overlaps.values())}
            near = {cell for cell in near if valid(image, *cell, stride)}
            assert near and (stride > 8 or len(near) < side * side)
            cells += len(near)
            total += sum((student[image][c][i][j] - teacher[image][c][i][j]) ** 2 for i, j in near for c in range(4))
        expected += 0.01 / (2 * cells) * total
    assert losses == pytest.approx([expected], rel=1e-5)


def test_begins_after_400_steps(case):
    assert case.distil("fgfi", step=399)[0] == [0.0]
