"""SP against its equations 1 to 4."""

from __future__ import annotations

import math

import pytest


def similarities(images):
    rows = [[value for plane in image for row in plane for value in row] for image in images]
    products = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in rows] for one in rows]
    return [[value / math.sqrt(sum(v**2 for v in row)) for value in row] for row in products]


def test_similarity_of_images(case):
    losses, _ = case.distil("sp")
    expected = 0.0
    for _, student, teacher in case.maps():
        ours, theirs = similarities(student), similarities(teacher)
        expected += 3000 * sum((theirs[i][j] - ours[i][j]) ** 2 for i in range(2) for j in range(2)) / 2**2
    assert losses == pytest.approx([expected], rel=1e-6)
