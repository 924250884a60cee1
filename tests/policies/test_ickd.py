"""ICKD against its loss: rows of the channels' correlations, each of length 1."""

from __future__ import annotations

import math

import pytest


def correlations(image):
    planes = [[value for row in plane for value in row] for plane in image]
    products = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in planes] for one in planes]
    return [[value / math.sqrt(sum(v**2 for v in row)) for value in row] for row in products]


def test_correlation_of_channels(case):
    losses, distiller = case.distil("ickd")
    maps = case.maps(lambda level, feature: distiller.adapters[f"{level} conv(1, norm=batch)"](feature))
    expected = 0.0
    for _, student, teacher in maps:
        for ours, theirs in zip(map(correlations, student), map(correlations, teacher), strict=True):
            expected += 2.5 * sum((theirs[i][j] - ours[i][j]) ** 2 for i in range(4) for j in range(4)) / (2 * 4)
    assert losses == pytest.approx([expected], rel=1e-5)
