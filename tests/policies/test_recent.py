"""Recent methods without code to compare with, against loops over their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from detkds import Distiller, load_policy
from detkds.adapters.mlp import MLP
from detkds.structures import DetectorInfo, FeatureSpec


def layers_of(distiller: Distiller, level: str) -> list[nn.Module]:
    [adapter] = [one for name, one in distiller.adapters.items() if name.split(" ")[0] == level]
    return list(adapter.children())


def at(convolution: nn.Module, column: list[float]) -> list[float]:
    """What a 1x1 convolution makes of one position."""
    rows = zip(convolution.weight[:, :, 0, 0].tolist(), convolution.bias.tolist(), strict=True)  # type: ignore[union-attr,index]
    return [sum(w * x for w, x in zip(row, column, strict=True)) + bias for row, bias in rows]


def test_yolo26_weighs_features_by_the_teachers_scores(case):
    info = DetectorInfo(
        {"p3": FeatureSpec(4, 8), "p4": FeatureSpec(4, 16), "p5": FeatureSpec(4, 32)}, case.student.layout
    )
    for side in (case.student, case.teacher):
        for maps in (side.features, side.logits, side.regression, side.boxes):
            maps["p5"] = maps["p4"][..., :2, :2].clone()
    distiller = Distiller(load_policy("yolo26"), student=info, teacher=info).double()
    [loss] = distiller(case.student, case.teacher, case.targets).values()
    expected = 0.0
    for level, features in case.student.features.items():
        first, _, second = layers_of(distiller, level)
        total = scores = 0.0
        for image in range(2):
            for i in range(features.shape[2]):
                for j in range(features.shape[3]):
                    hidden = [max(0.0, x) for x in at(first, features[image, :, i, j].tolist())]
                    wanted = case.teacher.features[level][image, :, i, j].tolist()
                    score = case.teacher.logits[level][image, :, :, i, j].sigmoid().max().item()
                    total += score * sum((a - b) ** 2 for a, b in zip(at(second, hidden), wanted, strict=True))
                    scores += score
        expected += 6 * total / (4 * scores)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_radio_compares_directions_and_sizes(case):
    info = DetectorInfo({"p3": FeatureSpec(4, 8), "p4": FeatureSpec(4, 16)}, case.student.layout)
    distiller = Distiller(load_policy("radio"), student=info, teacher=info).double()
    losses = [loss.item() for loss in distiller(case.student, case.teacher).values()]
    cosine = size = 0.0
    for level, features in case.student.features.items():
        first, _, _, second = layers_of(distiller, level)
        count = features[:, 0].numel()
        for image in range(2):
            for i in range(features.shape[2]):
                for j in range(features.shape[3]):
                    hidden = at(first, features[image, :, i, j].tolist())
                    mean = sum(hidden) / 4
                    deviation = math.sqrt(sum((x - mean) ** 2 for x in hidden) / 4 + 1e-5)
                    hidden = [(x - mean) / deviation for x in hidden]
                    made = at(second, [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in hidden])
                    wanted = case.teacher.features[level][image, :, i, j].tolist()
                    inner = sum(a * b for a, b in zip(made, wanted, strict=True))
                    cosine += 0.9 * (1 - inner / (math.hypot(*made) * math.hypot(*wanted))) / count
                    for a, b in zip(made, wanted, strict=True):
                        size += 0.1 * (0.5 * (a - b) ** 2 if abs(a - b) < 1 else abs(a - b) - 0.5) / (4 * count)
    assert losses == pytest.approx([cosine, size], rel=1e-6)


def test_the_mlp_keeps_every_position_apart(generator: torch.Generator):
    adapter = MLP("gelu", True).build(3, 5, generator)
    assert adapter is not None
    maps = torch.randn(1, 3, 2, 2, generator=generator)
    with torch.no_grad():
        whole, single = adapter(maps), adapter(maps[..., :1, :1])
    assert whole.shape == (1, 5, 2, 2)
    torch.testing.assert_close(whole[..., :1, :1], single)


def relations(feature: Tensor) -> list[list[float]]:
    columns = [feature[:, i, j].tolist() for i in range(feature.shape[1]) for j in range(feature.shape[2])]
    return [[sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y)) for y in columns]
            for x in columns]  # fmt: skip


def test_token_relations_of_large_maps_are_those_of_their_means(case):
    from detkds.structures import Pair
    from detkds.transforms.relation import Affinity

    student, teacher = case.student.features["p3"], case.teacher.features["p3"]  # 8 x 8
    pair = Affinity(positions=16)(Pair(student, teacher))
    assert pair.student.shape == (2 * 16, 16)
    means = torch.nn.functional.avg_pool2d(student, 2)
    expected = torch.tensor([row for image in means for row in relations(image)], dtype=torch.float64)
    torch.testing.assert_close(pair.student, expected)
    weight = torch.ones(2, 1, 8, 8, dtype=torch.float64)
    weight[0, 0, 0, 0] = 0
    masked = Affinity()(Pair(student, teacher, weight=weight))
    assert masked.weight is not None and masked.weight.shape == (128, 1) and masked.weight[0] == 0
    assert (masked.student[1:64, 0] == 0).all()
