"""COFD against its loss, number by number."""

from __future__ import annotations

from itertools import chain

import pytest


def margin(teacher, channel):
    negative = [value for image in teacher for row in image[channel] for value in row if value < 0]
    return sum(negative) / len(negative)


def test_partial_distance_to_the_margin_relu(case):
    losses, distiller = case.distil("cofd")
    expected = 0.0
    left_out = clipped = 0
    for _, student, teacher in case.maps(
        lambda level, feature: distiller.adapters[f"{level} conv(1, norm=batch)"](feature)
    ):
        margins = [margin(teacher, channel) for channel in range(4)]
        for ours, theirs in zip(student, teacher, strict=True):
            for plane, wanted, low in zip(ours, theirs, margins, strict=True):
                for s, t in zip(chain(*plane), chain(*wanted), strict=True):
                    target = t if t > low else low
                    clipped += target > t
                    if s <= target and target <= 0:
                        left_out += 1
                    else:
                        expected += 1e-5 * (s - target) ** 2 / 2
    assert left_out > 50 and clipped > 50
    assert losses == pytest.approx([expected], rel=1e-6)
