"""RepPoints' losses and predictions against loops over cells, and its agreement with FCOS."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from detkds.detectors.one_stage.reppoints import RepPoints
from detkds.errors import ConfigError
from detkds.structures import Batch

Build = Callable[..., Any]


def _nudged(small: Build, **options: Any) -> Any:
    """A detector whose boxes have the size of a cell or two, so that some match and some do not."""
    detector = small("reppoints", **options)
    head = detector.model.head
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for layer, std in ((head.initial_out, 3.0), (head.refined_out, 1.0), (head.class_out, 1.0)):
            layer.bias.normal_(std=std)
            layer.weight.normal_(std=std / 10)
    return detector


def _smooth_l1(difference: float) -> float:
    return difference**2 / 2 / 0.11 if abs(difference) < 0.11 else abs(difference) - 0.055


def _focal(logit: float, wanted: bool) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if wanted else -0.75 * p**2 * math.log(1 - p)


def _matched_by_loop(boxes: Tensor, objects: Tensor) -> list[int | None]:
    """Refinement's assignment of one image: an object's number, -1 for background, None for neither."""
    iou = box_iou(boxes, objects)
    highest = iou.amax(0).tolist()
    rows: list[int | None] = []
    for overlaps in iou.tolist():
        best = max(range(len(overlaps)), key=overlaps.__getitem__)
        rescued = any(0 < one == most for one, most in zip(overlaps, highest, strict=True))
        rows.append(best if overlaps[best] >= 0.5 or rescued else -1 if overlaps[best] < 0.4 else None)
    return rows


@pytest.mark.parametrize("conversion", ["moment", "minmax", "partial_minmax"])
def test_losses_equal_a_loop(small: Build, batch: Batch, conversion: str) -> None:
    detector = _nudged(small, conversion=conversion).train()
    features = detector.model.backbone(detector.normalize(batch))
    heads, grid = detector._heads(features)
    anchors, targets = torch.cat(grid), batch.targets or []
    initial = detector.decode(heads["initial_regression"].detach(), anchors)
    refined = detector.decode(heads["bbox_regression"].detach(), anchors)

    sums, positives = [0.0, 0.0, 0.0], [0, 0]
    for image, target in enumerate(targets):
        objects = target["boxes"]
        matched = _matched_by_loop(initial[image], objects)
        assert None in matched and -1 in matched
        positives[1] += sum(one is not None and one >= 0 for one in matched)
        for row, found in enumerate(matched):
            for label, logit in enumerate(heads["cls_logits"][image, row].tolist()):
                if found is not None:
                    sums[0] += _focal(logit, found >= 0 and int(target["labels"][found]) == label)
            if found is not None and found >= 0:
                stride = float(anchors[row, 2] - anchors[row, 0])
                sums[2] += sum(map(_smooth_l1, ((refined[image, row] - objects[found]) / (4 * stride)).tolist()))
        for box in objects:
            width, height = (box[2:] - box[:2]).tolist()
            stride = min(128.0, max(8.0, 2.0 ** math.floor(math.log2(math.sqrt(width * height) / 4))))
            center = (box[:2] + box[2:]) / 2
            cells = [i for i, a in enumerate(anchors.tolist()) if a[2] - a[0] == stride]
            points = (anchors[cells, :2] + anchors[cells, 2:]) / 2
            row = cells[int(((points - center) / torch.tensor([width, height])).norm(dim=1).argmin())]
            positives[0] += 1
            sums[1] += sum(map(_smooth_l1, ((initial[image, row] - box) / (4 * stride)).tolist()))
    losses = {key: float(loss.detach()) for key, loss in detector(batch).losses.items()}
    assert positives[0] == 4 and positives[1] > 4
    assert losses["classification"] == pytest.approx(sums[0] / positives[1], rel=1e-4)
    assert losses["bbox_initial"] == pytest.approx(0.5 * sums[1] / positives[0], rel=1e-4)
    assert losses["bbox_refined"] == pytest.approx(sums[2] / positives[1], rel=1e-4)


def test_images_without_objects_count_as_one_positive(small: Build, batch_of: Callable[..., Batch]) -> None:
    detector = small("reppoints").train()
    empty, one = batch_of([[]]), batch_of([[[30, 30, 90, 90]]])
    with torch.no_grad():
        output, alone, shared = detector(empty), detector(one), detector(batch_of([[[30, 30, 90, 90]], []]))
    assert output.losses["bbox_initial"] == output.losses["bbox_refined"] == 0
    logits = torch.cat([level.flatten() for level in output.logits.values()]).tolist()
    expected = sum(_focal(logit, False) for logit in logits)
    assert float(output.losses["classification"]) == pytest.approx(expected, rel=1e-4)
    assert float(shared.losses["bbox_initial"]) == pytest.approx(float(alone.losses["bbox_initial"]) / 2, rel=0.05)


def test_sides_are_in_strides_from_the_cell(small: Build, batch: Batch) -> None:
    detector = small("reppoints", conversion="minmax").eval()
    head = detector.model.head
    with torch.no_grad():
        for layer in (head.initial_out, head.refined_out):
            layer.weight.zero_()
        head.initial_out.bias[:] = 1.0
        head.refined_out.bias[:] = torch.tensor([-2.0, -0.5] * 8 + [1.0, 2.0])  # y before x
        output = detector(batch)
    # the refined points are (x, y) = (0.5, -1) eight times and (3, 2): the box leaves the cell out at the left
    assert output.regression["p4"][0, :, 0, 3, 2].tolist() == [-0.5, 1, 3, 2]
    assert output.boxes["p4"][0, :, 0, 3, 2].tolist() == [32 + 8, 48 - 16, 32 + 48, 48 + 32]  # the cell is (2, 3) x 16


def test_compares_with_fcos(small: Build, batch: Batch) -> None:
    ours, theirs = small("reppoints").eval(), small("fcos").eval()
    assert ours.info.layout.mismatch(theirs.info.layout, boxes=True) is None
    with torch.no_grad():
        output, other = ours(batch), theirs(batch)
        output.regression = other.regression
        boxes = ours.restore(output).boxes
    assert all(torch.allclose(boxes[level], other.boxes[level], atol=1e-4) for level in boxes)


def test_predictions_equal_a_loop(small: Build, batch: Batch) -> None:
    detector = _nudged(small, score_threshold=0.3, topk_candidates=40, max_detections=25).eval()
    with torch.no_grad():
        found, output = detector.predict(batch), detector(batch)
    for image, one in enumerate(found):
        candidates: list[tuple[float, list[float], int]] = []
        for level in output.logits:
            scores, boxes = output.logits[level][image, :, 0].sigmoid(), output.boxes[level][image, :, 0]
            pairs = [
                (float(scores[label, y, x]), boxes[:, y, x].clamp(0, 128).tolist(), label)
                for label, y, x in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist()
            ]
            candidates += sorted((pair for pair in pairs if pair[0] > 0.3), reverse=True)[:40]
        kept = []
        for label in range(3):
            of_class = [pair for pair in candidates if pair[2] == label]
            rows = nms(torch.tensor([p[1] for p in of_class]), torch.tensor([p[0] for p in of_class]), 0.5)
            kept += [of_class[row] for row in rows.tolist()]
        kept = sorted(kept, reverse=True)[:25]
        assert len(kept) == len(one.boxes) == 25
        assert torch.allclose(one.scores, torch.tensor([pair[0] for pair in kept]), atol=1e-6)
        assert torch.allclose(one.boxes, torch.tensor([pair[1] for pair in kept]), atol=1e-4)
        assert one.labels.tolist() == [pair[2] for pair in kept]


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        RepPoints(["a"], "narrow8", conversion="momnt", head_convs=-1)
    assert "'moment'" in str(caught.value) and "head_convs" in str(caught.value)
    with pytest.raises(ConfigError, match=r"background_iou: expected <= 0\.5, got 0\.6"):
        RepPoints(["a"], "narrow8", background_iou=0.6)
