"""DeFeat against its loss: masks without weights, of objects on their own level."""

from __future__ import annotations

import math

import pytest
import torch

from detkds import Distiller, load_policy
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, Layout, RegionResponse, Target


def test_positive_and_negative_proposals():
    """Each part is averaged over its own proposals; features as in the policy without them."""
    info = DetectorInfo(
        {"p3": FeatureSpec(4, 8)}, Layout("region", "softmax", 3, 1, "deltas"), regions=("main", "background")
    )
    generator = torch.Generator().manual_seed(0)
    positive = torch.tensor([[1.0], [0.0], [0.0], [1.0], [0.0]])

    def output():
        logits, numbers = torch.randn(5, 4, generator=generator), torch.randn(5, 4, 4, generator=generator)
        return DetectorOutput(
            {"p3": torch.randn(2, 4, 4, 4, generator=generator)},
            torch.tensor([[32, 32], [32, 32]]),
            info.layout,
            {"roi": logits},
            {"roi": numbers},
            {"roi": numbers},
            proposals=[numbers[:2, :, 0], numbers[2:, :, 0]],
            respond_at=lambda proposals: RegionResponse(logits, numbers, numbers),
            region=lambda name, boxes=None: {"roi": positive if name == "main" else 1 - positive},
        )

    student, teacher = output(), output()
    targets = [Target(boxes=torch.tensor([[4.0, 6.0, 28.0, 30.0]]), labels=torch.tensor([0]))] * 2
    both, features = (
        Distiller(load_policy(name), student=info, teacher=info, seed=0)(student, teacher, targets)
        for name in ("defeat", "defeat-features")
    )
    sums, counts = [0.0, 0.0], [0, 0]
    for row in range(5):
        p, q = (torch.softmax(side.logits["roi"][row], 0).tolist() for side in (teacher, student))
        part = int(positive[row, 0] == 0)
        counts[part] += 1
        sums[part] += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    expected = [2 * total / count for total, count in zip(sums, counts, strict=True)]
    assert [loss.item() for loss in both.values()] == pytest.approx(
        [*(loss.item() for loss in features.values()), *expected], rel=1e-5
    )


def test_foreground_and_background(case, valid):
    losses, distiller = case.distil("defeat-features")
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
