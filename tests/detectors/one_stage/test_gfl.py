"""GFL: its responses, and its losses against a slow loop over positives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou

from detkds.detectors.matching import Objects
from detkds.detectors.one_stage.atss import match_adaptively
from detkds.structures import Batch

Build = Callable[..., Any]


@pytest.fixture
def trained(small: Build) -> Any:
    """A detector whose weights are far from their initial values, so that scores and distributions vary."""
    detector = small("gfl").train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in detector.model.head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        detector.model.head.cls_logits.bias.fill_(-1.0)
    return detector


def test_sides_are_expected_distances_from_the_cell_corner(small: Build, batch: Batch) -> None:
    detector = small("gfl", reg_max=4).eval()
    head = detector.model.head
    nn.init.zeros_(head.bbox_distribution.weight)
    sides = [[0.0] * 5, [9e3, 0, 0, 0, 0], [0, 0, 0, 0, 9e3], [0, math.log(3), 0, 0, 0]]  # means 2, 0, 4, 13 / 7
    head.bbox_distribution.bias.data = torch.tensor(sides).flatten()
    with torch.no_grad():
        output = detector(batch)
    assert output.box_distribution["p4"].shape == (2, 4, 5, 1, 8, 8)
    assert torch.allclose(output.box_distribution["p4"][1, :, :, 0, 3, 2], torch.tensor(sides))
    assert output.regression["p4"][1, :, 0, 3, 2].tolist() == pytest.approx([2, 0, 4, (9 + 3) / 7])
    wanted = [32 - 2 * 16, 48, 32 + 4 * 16, 48 + 16 * 12 / 7]  # the point is (2, 3) x 16
    assert output.boxes["p4"][1, :, 0, 3, 2].tolist() == pytest.approx(wanted)


def test_each_level_has_a_scale_of_its_own(small: Build, batch: Batch) -> None:
    detector = small("gfl").eval()
    with torch.no_grad():
        before = detector(batch)
        detector.model.head.scales[1] = 3.0
        after = detector(batch)
    for level, old in before.box_distribution.items():
        factor = 3.0 if level == "p4" else 1.0
        assert torch.allclose(after.box_distribution[level], factor * old, atol=1e-6)


def test_losses_equal_a_slow_loop(trained: Any, batch: Batch) -> None:
    losses = {name: float(loss.detach()) for name, loss in trained(batch).losses.items()}
    assert batch.targets is not None
    with torch.no_grad():
        features = trained.model.backbone(trained.normalize(batch))
        heads = trained.model.head(list(features.values()))
    levels = trained.grid(list(features.values()))
    anchors = torch.cat(levels)
    strides = torch.cat([torch.full((len(a),), float(s)) for a, s in zip(levels, (8, 16, 32, 64, 128), strict=True)])
    matched = match_adaptively(levels, Objects.collect(batch.targets))
    focal = overlap = nearness = total = 0.0
    positives = 0
    for image, target in enumerate(batch.targets):
        scores = heads["cls_logits"][image].sigmoid()
        for row, number in enumerate(matched[image].tolist()):
            wanted = [0.0, 0.0, 0.0]
            if number >= 0:
                positives += 1
                point = ((anchors[row, :2] + anchors[row, 2:]) / 2).tolist()
                stride = float(strides[row])
                distribution = heads["bbox_distribution"][image, row].view(4, 17).softmax(-1)
                sides = [sum(k * float(p) for k, p in enumerate(side)) for side in distribution]
                box = torch.tensor([[
                    point[0] - stride * sides[0], point[1] - stride * sides[1],
                    point[0] + stride * sides[2], point[1] + stride * sides[3],
                ]])  # fmt: skip
                truth = target["boxes"][number]
                wanted[int(target["labels"][number])] = float(box_iou(box, truth[None]))
                weight = float(scores[row].max())
                total += weight
                overlap += weight * (1 - float(generalized_box_iou(box, truth[None])))
                nearness += (
                    weight * sum(_slow_nearness(*pair) for pair in _pairs(distribution, truth, point, stride)) / 4
                )
            for score, quality in zip(scores[row].tolist(), wanted, strict=True):
                entropy = -quality * math.log(score) - (1 - quality) * math.log(1 - score)
                focal += abs(quality - score) ** 2 * entropy
    assert positives > 10
    assert losses["classification"] == pytest.approx(focal / positives, rel=1e-4)
    assert losses["bbox_regression"] == pytest.approx(2 * overlap / total, rel=1e-4)
    assert losses["bbox_distribution"] == pytest.approx(0.25 * nearness / total, rel=1e-4)


def _pairs(distribution: Tensor, truth: Tensor, point: list[float], stride: float) -> list[tuple[list[float], float]]:
    left, top, right, bottom = truth.tolist()
    distances = [point[0] - left, point[1] - top, right - point[0], bottom - point[1]]
    return [(side.tolist(), distance / stride) for side, distance in zip(distribution, distances, strict=True)]


def _slow_nearness(distribution: list[float], target: float) -> float:
    target = min(target, 15.9)
    lower = math.floor(target)
    share = target - lower
    return -(1 - share) * math.log(distribution[lower]) - share * math.log(distribution[lower + 1])


def test_the_weights_of_positives_give_no_gradient_to_scores(trained: Any, batch: Batch) -> None:
    losses = trained(batch).losses
    boxes = losses["bbox_regression"] + losses["bbox_distribution"]
    [gradient] = torch.autograd.grad(
        boxes, [trained.model.head.cls_logits.weight], allow_unused=True, retain_graph=True
    )
    assert gradient is None
    [gradient] = torch.autograd.grad(
        losses["classification"], [trained.model.head.bbox_distribution.weight], allow_unused=True
    )
    assert gradient is None


def test_predictions_are_the_best_scored_boxes(trained: Any, batch: Batch) -> None:
    trained.eval()
    with torch.no_grad():
        output, found = trained(batch), trained.predict(batch)
    for image, one in enumerate(found):
        logits = torch.cat([level[image].flatten(1) for level in output.logits.values()], dim=1)
        boxes = torch.cat([level[image].flatten(1) for level in output.boxes.values()], dim=1).T.clamp(0, 128)
        label, row = divmod(int(logits.argmax()), logits.shape[1])
        assert one.labels[0] == label and one.scores[0] == logits.max().sigmoid()
        assert torch.allclose(one.boxes[0], boxes[row])


def test_it_is_compared_with_fcos_cell_by_cell(small: Build) -> None:
    ours, fcos = small("gfl").info.layout, small("fcos").info.layout
    assert ours.mismatch(fcos, boxes=True) is None and fcos.mismatch(ours, boxes=True) is None
    assert ours.regression == "sides" and ours.anchors == 1
    assert ours.mismatch(replace(ours, anchor_key="elsewhere"), boxes=True) is not None
    retinanet = small("retinanet", anchor_scales=[8], anchor_ratios=[1.0]).info.layout
    assert "regression differs" in str(ours.mismatch(retinanet, boxes=True))
    assert ours.mismatch(retinanet) is None


def test_faults_name_the_largest_distance(small: Build) -> None:
    with pytest.raises(Exception, match="reg_max: expected a whole number >= 1, got 0"):
        small("gfl", reg_max=0)
