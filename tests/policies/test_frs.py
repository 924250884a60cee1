"""FRS against its loss: every cell counts by the teacher's largest score there."""

from __future__ import annotations

import math

import pytest


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_features_and_classes_by_score(case, valid):
    losses, distiller = case.distil("frs", step=500)
    features = classes = 0.0
    maps = case.maps(lambda level, feature: distiller.adapters[f"{level} conv(3)"](feature))
    for (level, student, teacher), stride in zip(maps, (8, 16), strict=True):
        scores = case.teacher.logits[level].tolist()
        own = case.student.logits[level].tolist()
        total = norm = class_total = 0.0
        for image in range(2):
            for i in range(64 // stride):
                for j in range(64 // stride):
                    if valid(image, i, j, stride):
                        cell = [sigmoid(scores[image][k][a][i][j]) for k in range(3) for a in range(2)]
                        norm += max(cell)
                        total += max(cell) * sum(
                            (teacher[image][c][i][j] - student[image][c][i][j]) ** 2 for c in range(4)
                        )
                        given = [sigmoid(own[image][k][a][i][j]) for k in range(3) for a in range(2)]
                        for p, q in zip(cell, given, strict=True):
                            # The teacher's own entropy, a constant of the loss, is taken off.
                            entropy = p * math.log(p) + (1 - p) * math.log(1 - p)
                            class_total += max(cell) * (entropy - p * math.log(q) - (1 - p) * math.log(1 - q))
        features += 0.005 * total / norm
        classes += 0.02 * class_total / norm
    assert losses == pytest.approx([features, classes], rel=1e-6)


def test_begins_slowly(case):
    begun, whole = (case.distil("frs", step=step)[0] for step in (250, 500))
    assert begun == pytest.approx([loss / 2 for loss in whole])
