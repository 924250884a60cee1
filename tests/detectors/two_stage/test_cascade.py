"""The cascade against slow and obvious references: the chain of boxes, each stage's samples, and the mean."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor

from detkds.detectors.two_stage.cascade import STAGE_DEVIATIONS, STAGE_IOU, STAGE_SHARES
from detkds.detectors.two_stage.region_rows import BACKGROUND, LEFT_OUT, Rows
from detkds.detectors.two_stage.sampling import Sampler
from detkds.distiller import Distiller
from detkds.policy import Policy, Term
from detkds.structures import Batch, Target

Build = Callable[..., Any]
SIZES = [(128, 128), (128, 128)]


def _moved(box: Tensor, delta: Tensor, deviation: tuple[float, ...]) -> list[float]:
    """One box by one delta, in plain arithmetic (Girshick et al. 2014, appendix C)."""
    x0, y0, x1, y1 = box.tolist()
    dx, dy, dw, dh = (value * spread for value, spread in zip(delta.tolist(), deviation, strict=True))
    width, height = x1 - x0, y1 - y0
    x, y = x0 + width / 2 + dx * width, y0 + height / 2 + dy * height
    width, height = width * math.exp(dw), height * math.exp(dh)
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _cut(box: list[float], height: int, width: int) -> list[float]:
    """Inside the image, and no side shorter than a pixel."""
    x0, x1 = (min(max(value, 0.0), width) for value in (box[0], box[2]))
    y0, y1 = (min(max(value, 0.0), height) for value in (box[1], box[3]))
    return [x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)]


def _lively(detector: Any) -> Any:
    """The detector with box heads that move boxes by a good part of their size."""
    for stage in detector.regions.stages:
        torch.nn.init.normal_(stage.box_predictor.bbox_pred.weight, std=1.0, generator=torch.Generator().manual_seed(5))
    return detector


def _proposals(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(9, 2, generator=generator) * 90
    boxes = torch.cat([corners, corners + 8 + torch.rand(9, 2, generator=generator) * 28], 1)
    return [boxes[:5], boxes[5:]]


def test_the_chain_box_by_box(small: Build, batch: Batch) -> None:
    """Every region alone through all stages, by scalar arithmetic between them; logits are the mean."""
    detector = _lively(small("cascade_rcnn").eval())
    proposals = _proposals()
    with torch.no_grad():
        answer = detector(batch)
        response = answer.respond_at(proposals)
        row = 0
        for image, boxes in enumerate(proposals):
            for first in boxes:
                box, logits = first.tolist(), []
                for number, (stage, deviation) in enumerate(
                    zip(detector.regions.stages, STAGE_DEVIATIONS, strict=True)
                ):
                    box = _cut(box, *SIZES[image]) if number else box
                    rows = [torch.zeros(0, 4), torch.zeros(0, 4)]
                    rows[image] = torch.tensor([box])
                    scores, delta = stage(answer.features, rows)
                    logits.append(scores[0])
                    box = _moved(torch.tensor(box), delta[0], deviation)
                assert torch.allclose(response.logits[row], sum(logits) / 3, atol=1e-4)
                assert torch.allclose(response.boxes[row, :, 0], torch.tensor(box), atol=1e-2, rtol=1e-4)
                back = _moved(first, response.regression[row, :, 2], STAGE_DEVIATIONS[0])
                assert torch.allclose(torch.tensor(back), torch.tensor(box), atol=1e-2, rtol=1e-4)
                row += 1
    assert row == len(response.logits) == 9
    assert (response.boxes[:, :, 0] - torch.cat(proposals)).abs().max() > 3  # something did move
    assert torch.equal(response.boxes[..., 0], response.boxes[..., 3])
    assert response.boxes.stride(2) == response.regression.stride(2) == 0  # a view, not a copy for each class


def _iou(one: Tensor, other: Tensor) -> float:
    x0, y0 = max(one[0], other[0]), max(one[1], other[1])
    x1, y1 = min(one[2], other[2]), min(one[3], other[3])
    shared = max(float(x1 - x0), 0.0) * max(float(y1 - y0), 0.0)
    areas = [float((box[2] - box[0]) * (box[3] - box[1])) for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize("iou", STAGE_IOU)
def test_rows_by_a_slow_loop(iou: float) -> None:
    target = Target(
        boxes=torch.tensor([[10.0, 10, 50, 50], [40, 40, 90, 90]]),
        labels=torch.tensor([3, 1]),
        crowd_boxes=torch.tensor([[90.0, 0, 128, 40]]),
    )
    generator = torch.Generator().manual_seed(1)
    shifts = torch.randn(40, 4, generator=generator) * 6
    boxes = torch.cat([target["boxes"][torch.arange(40) % 2] + shifts, torch.tensor([[95.0, 5, 120, 30]])])
    rows = Rows.assign([boxes], [target], iou)
    assert torch.equal(rows.boxes[0], torch.cat([boxes, target["boxes"]]))
    assert rows.objects[0].tolist() == [False] * 41 + [True] * 2
    for box, matched, label in zip(rows.boxes[0], rows.matched[0], rows.labels[0], strict=True):
        overlaps = [_iou(box, one) for one in target["boxes"]]
        best = max(range(2), key=overlaps.__getitem__)
        if overlaps[best] >= iou:
            assert (int(matched), int(label)) == (best, int(target["labels"][best]))
        else:
            assert int(label) == (LEFT_OUT if box[0] == 95 else BACKGROUND)
    counts = [int((Rows.assign([boxes], [target], one).labels[0] > 0).sum()) for one in STAGE_IOU]
    assert counts[0] > counts[1] > counts[2] >= 2


def test_rows_without_objects_and_limits() -> None:
    nothing = Target(boxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    rows = Rows.assign([_proposals()[0]], [nothing], 0.5)
    assert rows.labels[0].tolist() == [BACKGROUND] * 5 and len(rows.truth([nothing])) == 0
    sampler = Sampler(2, 0.25)
    sampler.generator = torch.Generator().manual_seed(0)
    assert len(rows.drawn(sampler).boxes[0]) == 2
    limited = rows.limited(sampler)
    assert len(limited.boxes[0]) == 5 and int((limited.labels[0] == LEFT_OUT).sum()) == 3
    marked = rows.without([torch.tensor([True, False, True])])
    assert marked.labels[0].tolist() == [LEFT_OUT, BACKGROUND, LEFT_OUT, BACKGROUND, BACKGROUND]


def test_losses_by_a_slow_loop(small: Build, batch: Batch) -> None:
    """Every stage's loss row by row, where all rows are drawn."""
    detector = _lively(small("cascade_mask_rcnn", roi_samples=128).train())
    regions, targets = detector.regions, [Target({**t, "labels": t["labels"] + 1}) for t in batch.targets or []]  # type: ignore[misc]
    proposals = [torch.cat([p, t["boxes"] + 2, t["boxes"] - 1.5]) for p, t in zip(_proposals(), targets, strict=True)]
    with torch.no_grad():
        features = detector.model.backbone(batch.images)
        rows, _, losses = regions.fit(features, proposals, targets, SIZES)
        first = rows.boxes
        assert [len(one) for one in first] == [5 + 3 * 3, 4 + 3 * 1]  # every object's own box is among the first
        chain, own = first, [torch.arange(len(one)) >= len(p) for one, p in zip(first, proposals, strict=True)]
        for number, stage in enumerate(regions.stages):
            rows = chain if number == 0 else [torch.cat([c, t["boxes"]]) for c, t in zip(chain, targets, strict=True)]
            logits, deltas = stage(features, rows)
            logits, deltas = (list(one.split([len(r) for r in rows])) for one in (logits, deltas))
            entropy, distance, count = [], [], 0
            for image, target in enumerate(targets):
                for index, box in enumerate(rows[image]):
                    if number and index < len(own[image]) and own[image][index]:
                        continue
                    overlaps = [_iou(box, one) for one in target["boxes"]]
                    best = max(range(len(overlaps)), key=overlaps.__getitem__)
                    positive = overlaps[best] >= STAGE_IOU[number]
                    label = int(target["labels"][best]) if positive else 0
                    entropy.append(-float(logits[image][index].log_softmax(0)[label]))
                    count += 1
                    if positive:
                        wanted = _encoded(target["boxes"][best], box, STAGE_DEVIATIONS[number])
                        difference = (deltas[image][index] - wanted).abs()
                        distance.append(float(torch.where(difference < 1, difference**2 / 2, difference - 0.5).sum()))
            share = STAGE_SHARES[number]
            assert float(losses[f"loss_classifier_{number + 1}"]) == pytest.approx(
                share * sum(entropy) / count, rel=1e-4
            )
            assert float(losses[f"loss_box_reg_{number + 1}"]) == pytest.approx(share * sum(distance) / count, rel=1e-3)
            assert len(distance) > 0 and float(losses[f"loss_mask_{number + 1}"]) > 0
            chain = [
                torch.tensor(
                    [
                        _cut(_moved(b, d, STAGE_DEVIATIONS[number]), *SIZES[image])
                        for b, d in zip(chain[image], deltas[image][: len(chain[image])], strict=True)
                    ]
                )
                for image in range(2)
            ]
    assert list(losses) == [f"loss_{one}_{k}" for k in (1, 2, 3) for one in ("classifier", "box_reg", "mask")]


def _encoded(truth: Tensor, box: Tensor, deviation: tuple[float, ...]) -> Tensor:
    size, wanted = box[2:] - box[:2], truth[2:] - truth[:2]
    shift = ((truth[:2] + truth[2:]) - (box[:2] + box[2:])) / 2 / size
    return torch.cat([shift, (wanted / size).log()]) / torch.tensor(deviation)


def test_respond_at_own_proposals_repeats_the_pass(small: Build, batch: Batch) -> None:
    output = _lively(small("cascade_rcnn").train())(batch)
    response = output.respond_at(output.proposals)
    assert torch.allclose(response.logits, output.logits["roi"], atol=1e-5)
    assert torch.allclose(response.boxes, output.boxes["roi"], atol=1e-3)
    assert torch.allclose(response.regression, output.regression["roi"], atol=1e-4)
    assert response.logits.requires_grad


def test_predictions_are_made_from_the_response(small: Build, batch: Batch) -> None:
    detector = _lively(small("cascade_rcnn", score_threshold=0.0, nms_threshold=1.0, max_detections=10_000).eval())
    with torch.no_grad():
        features = detector.model.backbone(detector.normalize(batch))
        proposals, _ = detector.proposals(features, SIZES, None)
        response = detector(batch).respond_at(proposals)
        found = detector.predict(batch)
    scores = functional.softmax(response.logits, 1)[:, 1:].split([len(one) for one in proposals])
    for one, expected in zip(found, scores, strict=True):
        assert torch.allclose(one.scores, expected.flatten().sort(descending=True)[0][: len(one.scores)], atol=1e-6)
        assert len(one.scores) >= 0.9 * expected.numel()


def test_masks_are_the_mean_of_the_stages(small: Build, batch: Batch) -> None:
    detector = small("cascade_mask_rcnn").eval()
    boxes, columns = [torch.tensor([[5.0, 6, 60, 70]]), torch.tensor([[1.0, 2, 30, 44]])], torch.tensor([1, 3])
    with torch.no_grad():
        features = detector.model.backbone(batch.images)
        mean = detector.regions.masks(features, boxes, columns)
        each = [stage.masks(features, boxes, columns).sigmoid() for stage in detector.regions.stages]
    assert torch.allclose(mean, (each[0] + each[1] + each[2]) / 3) and mean.shape == (2, 14, 14)


def test_boxes_that_leave_the_image_stay_finite(small: Build, batch: Batch) -> None:
    detector = small("cascade_rcnn").eval()
    for stage in detector.regions.stages:
        stage.box_predictor.bbox_pred.bias.data = torch.tensor([400.0, -400.0, -30.0, 30.0])
    with torch.no_grad():
        response = detector(batch).respond_at(_proposals())
    assert torch.isfinite(response.boxes).all() and torch.isfinite(response.regression).all()


def test_a_cascade_teaches_a_faster_rcnn(small: Build, batch: Batch) -> None:
    teacher, student = small("cascade_rcnn", backbone="narrow16", seed=3).eval(), small("faster_rcnn").train()
    assert student.info.layout.mismatch(teacher.info.layout, boxes=True) is None
    policy = Policy([Term("logits", (), "kl", 1.0), Term("localization", (), "l1", 1.0)])
    distiller = Distiller(policy, student=student, teacher=teacher)
    calls: list[str] = []
    teacher.get_submodule("model.backbone").register_forward_hook(lambda *_: calls.append("backbone"))
    with torch.no_grad():
        answer = teacher(batch)
    losses = distiller(student(batch), answer, batch.targets)
    torch.stack(list(losses.values())).sum().backward()
    assert calls == ["backbone"] and all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    assert student.model.roi_heads.box_predictor.bbox_pred.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
