"""RetinaNet against torchvision's own model on identical weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet as Reference
from torchvision.models.detection._utils import BoxCoder

from detkds.errors import ConfigError
from detkds.structures import Batch

Build = Callable[..., Any]


def _reference(detector: Any, **options: float) -> Reference:
    """torchvision's model over the same body, neck and head, with its own anchors, transform and losses."""
    model = detector.get_submodule("model")
    sides = {"min_size": 128, "max_size": 128, "detections_per_img": 100, **options}
    return Reference(model.backbone, 3, head=model.head, **sides)


def test_losses_equal_torchvisions(small: Build, batch: Batch) -> None:
    detector = small("retinanet", head_norm="none").train()
    reference = _reference(detector).train()
    ours = detector(batch).losses
    theirs = reference(list(batch.images), [dict(target) for target in batch.targets or []])
    assert set(ours) == set(theirs) == {"classification", "bbox_regression"}
    for key, loss in theirs.items():
        assert torch.allclose(ours[key], loss, rtol=1e-5), key
    grads = [torch.autograd.grad(sum(losses.values()), detector.model.head.parameters()) for losses in (ours, theirs)]
    for mine, other in zip(*grads, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-6)


def test_predictions_equal_torchvisions(small: Build, batch: Batch) -> None:
    detector = small("retinanet", score_threshold=0.005).eval()
    reference = _reference(detector, score_thresh=0.005).eval()
    with torch.no_grad():
        ours, theirs = detector.predict(batch), reference(list(batch.images))
    for one, other in zip(ours, theirs, strict=True):
        assert len(one.boxes) == 100
        assert torch.allclose(one.boxes, other["boxes"], atol=1e-4)
        assert torch.allclose(one.scores, other["scores"], atol=1e-6)
        assert torch.equal(one.labels, other["labels"])


def test_levels_are_views_in_torchvisions_order_and_boxes_decode(small: Build, batch: Batch) -> None:
    detector = small("retinanet").eval()
    with torch.no_grad():
        output = detector(batch)
        rows = detector.model.head(list(output.features.values()))
    flat = {
        name: torch.cat([level.permute(0, 3, 4, 2, 1).flatten(1, 3) for level in group.values()], dim=1)
        for name, group in {"cls": output.logits, "reg": output.regression, "box": output.boxes}.items()
    }
    assert torch.equal(flat["cls"], rows["cls_logits"]) and torch.equal(flat["reg"], rows["bbox_regression"])
    anchors = torch.cat(detector.grid(list(output.features.values())))
    for image in range(2):
        decoded = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(flat["reg"][image], anchors)
        assert torch.equal(flat["box"][image], decoded)


def test_zero_deltas_decode_to_the_anchor(small: Build, batch: Batch) -> None:
    detector = small("retinanet", anchor_scales=[4], anchor_ratios=[1.0]).eval()
    nn.init.zeros_(detector.model.head.regression_head.bbox_reg.weight)
    with torch.no_grad():
        boxes = detector(batch).boxes["p3"]
    assert boxes.shape == (2, 4, 1, 16, 16)
    assert boxes[1, :, 0, 2, 5].tolist() == [40 - 16, 16 - 16, 40 + 16, 16 + 16]  # side 4 x 8 at (5, 2) x 8


def test_anchor_options_and_key(small: Build) -> None:
    plain = small("retinanet").info.layout
    other = small("retinanet", anchor_scales=[2, 4], anchor_ratios=[1.0]).info.layout
    assert (plain.anchors, other.anchors) == (9, 2)
    assert plain.anchor_key == small("retinanet", seed=5).info.layout.anchor_key != other.anchor_key
    assert plain.mismatch(other, boxes=True) is not None and plain.mismatch(plain, boxes=True) is None
    assert (plain.kind, plain.activation, plain.regression) == ("dense", "sigmoid", "deltas")


def test_head_options(small: Build) -> None:
    head = small("retinanet", head_convs=2, neck_channels=48).model.head
    norms = [m for m in head.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 4 and {norm.num_groups for norm in norms} == {24}
    assert not any(isinstance(m, nn.GroupNorm) for m in small("retinanet", head_norm="none").model.head.modules())
    assert len(small("retinanet").model.head.classification_head.conv) == 4


def test_features_only_teacher_skips_the_head(small: Build, batch: Batch) -> None:
    teacher = small("retinanet").eval()
    teacher.responses = False
    calls: list[int] = []
    teacher.model.head.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        output = teacher(batch)
        assert output.features and not output.logits and not calls
        assert len(teacher.predict(batch)) == 2 and calls == [1]
    assert teacher.train()(batch).losses


def test_thresholds_must_be_ordered(small: Build) -> None:
    with pytest.raises(ConfigError, match="background_iou"):
        small("retinanet", foreground_iou=0.4, background_iou=0.5)
