"""FGD against its equations, cell by cell."""

from __future__ import annotations

import math

import pytest

C = 4


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value - max(values)) for value in values]
    return [power / sum(powers) for power in powers]


def spatial(image, tau=0.5):
    """A^S: H W softmax over the cells of the mean of |F| over the channels."""
    cells = [(i, j) for i in range(len(image[0])) for j in range(len(image[0][0]))]
    shares = softmax([sum(abs(image[c][i][j]) for c in range(C)) / C / tau for i, j in cells])
    return {cell: len(cells) * share for cell, share in zip(cells, shares, strict=True)}


def channel(image, tau=0.5):
    """A^C: C softmax over the channels of the mean of |F| over the cells."""
    means = [sum(abs(v) for row in plane for v in row) / (len(plane) * len(plane[0])) for plane in image]
    return [C * share for share in softmax([mean / tau for mean in means])]


def test_focal_attention_and_context_losses(case, valid):
    losses, _ = case.distil("fgd")
    focal = spatial_loss = channel_loss = context = 0.0
    for (_, student, teacher), stride in zip(case.maps(), (8, 16), strict=True):
        for image in range(2):
            # The context blocks begin as the identity.
            context += sum(
                (theirs - ours) ** 2
                for planes in zip(student[image], teacher[image], strict=True)
                for rows in zip(*planes, strict=True)
                for ours, theirs in zip(*rows, strict=True)
            )
            a_s, a_c = spatial(teacher[image]), channel(teacher[image])
            spatial_loss += sum(abs(a_s[cell] - value) for cell, value in spatial(student[image]).items())
            channel_loss += sum(abs(a - b) for a, b in zip(a_c, channel(student[image]), strict=True))
            boxes = case.targets[image]["boxes"].tolist()
            weight = {}
            for i, j in a_s:
                areas = []
                for x1, y1, x2, y2 in boxes:
                    u1, v1, u2, v2 = x1 // stride, y1 // stride, math.ceil(x2 / stride), math.ceil(y2 / stride)
                    if u1 <= j < u2 and v1 <= i < v2:
                        areas.append((u2 - u1) * (v2 - v1))
                if valid(image, i, j, stride):
                    weight[i, j] = 1 / min(areas) if areas else None
            empty = sum(value is None for value in weight.values())
            for (i, j), value in weight.items():
                factor = 1e-3 * value if value is not None else 5e-4 / empty
                for c in range(C):
                    difference = teacher[image][c][i][j] - student[image][c][i][j]
                    focal += factor * a_s[i, j] * a_c[c] * difference**2
    # All sums are divided by the number of images.
    expected = [focal, 5e-4 * spatial_loss, 5e-4 * channel_loss, 5e-6 * context]
    assert losses == pytest.approx([value / 2 for value in expected], rel=1e-6)
