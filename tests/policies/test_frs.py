"""FRS against its loss: every cell counts by the teacher's largest score there."""

from __future__ import annotations

import math

import pytest


def test_features_by_score(case, valid):
    losses, distiller = case.distil("frs", step=500)
    expected = 0.0
    maps = case.maps(lambda level, feature: distiller.adapters[f"{level} conv(3)"](feature))
    for (level, student, teacher), stride in zip(maps, (8, 16), strict=True):
        scores = case.teacher.logits[level].tolist()
        total = norm = 0.0
        for image in range(2):
            for i in range(64 // stride):
                for j in range(64 // stride):
                    if valid(image, i, j, stride):
                        cell = [1 / (1 + math.exp(-scores[image][k][a][i][j])) for k in range(3) for a in range(2)]
                        norm += max(cell)
                        total += max(cell) * sum(
                            (teacher[image][c][i][j] - student[image][c][i][j]) ** 2 for c in range(4)
                        )
        expected += 0.005 * total / norm
    assert losses == pytest.approx([expected], rel=1e-6)


def test_begins_slowly(case):
    assert case.distil("frs", step=250)[0] == pytest.approx([case.distil("frs", step=500)[0][0] / 2])
