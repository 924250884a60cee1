"""DeFeat against its loss: masks without weights, of objects on their own level."""

from __future__ import annotations

import math

import pytest


def test_foreground_and_background(case, valid):
    losses, distiller = case.distil("defeat")
    expected = 0.0
    for index, (_, student, teacher) in enumerate(
        case.maps(lambda level, feature: distiller.adapters[f"{level} conv(3, relu=true)"](feature))
    ):
        stride = (8, 16)[index]
        sums, cells = [0.0, 0.0], [0, 0]
        for image in range(2):
            # All objects are small, so that they belong to the finest level there is.
            boxes = case.targets[image]["boxes"].tolist() if index == 0 else []
            for i in range(64 // stride):
                for j in range(64 // stride):
                    if not valid(image, i, j, stride):
                        continue
                    part = 1 - any(
                        x1 // stride <= j < math.ceil(x2 / stride) and y1 // stride <= i < math.ceil(y2 / stride)
                        for x1, y1, x2, y2 in boxes
                    )
                    cells[part] += 1
                    sums[part] += sum((student[image][c][i][j] - teacher[image][c][i][j]) ** 2 for c in range(4))
        # w / (2 N) of each part, averaged over the five levels of a pyramid.
        expected += sum(w / (2 * max(n, 1)) * total for w, n, total in zip((3, 12), cells, sums, strict=True)) / 5
    assert losses == pytest.approx([expected], rel=1e-6)
