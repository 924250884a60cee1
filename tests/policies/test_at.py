"""AT against its equation 2 on maps of squares."""

from __future__ import annotations

import math

import pytest


def normalised(image):
    cells = [sum(plane[i][j] ** 2 for plane in image) for i in range(len(image[0])) for j in range(len(image[0][0]))]
    length = math.sqrt(sum(value**2 for value in cells))
    return [value / length for value in cells]


def test_maps_of_squares(case):
    losses, _ = case.distil("at")
    expected = 0.0
    for _, student, teacher in case.maps():
        pairs = [
            (a, b)
            for image in range(2)
            for a, b in zip(normalised(student[image]), normalised(teacher[image]), strict=True)
        ]
        expected += 1000 / 2 * sum((a - b) ** 2 for a, b in pairs) / len(pairs)
    assert losses == pytest.approx([expected], rel=1e-6)
