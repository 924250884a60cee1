"""FCOS against torchvision's own model on identical weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection._utils import BoxLinearCoder

from detkds.structures import Batch

Build = Callable[..., Any]


def _reference(detector: Any, **options: float) -> detection.FCOS:
    model = detector.get_submodule("model")
    return detection.FCOS(model.backbone, 3, head=model.head, min_size=128, max_size=128, **options)  # type: ignore[arg-type]


def test_losses_equal_torchvisions(small: Build, batch: Batch) -> None:
    detector = small("fcos").train()
    ours = detector(batch).losses
    theirs = _reference(detector).train()(list(batch.images), [dict(target) for target in batch.targets or []])
    assert set(ours) == set(theirs) == {"classification", "bbox_regression", "bbox_ctrness"}
    for key, loss in theirs.items():
        assert loss > 0 and torch.allclose(ours[key], loss, rtol=1e-5), key


def test_predictions_equal_torchvisions(small: Build, batch: Batch) -> None:
    detector = small("fcos", score_threshold=0.01).eval()
    reference = _reference(detector, score_thresh=0.01).eval()
    with torch.no_grad():
        ours, theirs = detector.predict(batch), reference(list(batch.images))
    for one, other in zip(ours, theirs, strict=True):
        assert len(one.boxes) > 0
        assert torch.allclose(one.boxes, other["boxes"], atol=1e-4)
        assert torch.allclose(one.scores, other["scores"], atol=1e-6)
        assert torch.equal(one.labels, other["labels"])


def test_sides_are_in_strides_from_the_cell_corner(small: Build, batch: Batch) -> None:
    detector = small("fcos").eval()
    head = detector.model.head.regression_head.bbox_reg
    nn.init.zeros_(head.weight)
    head.bias.data = torch.tensor([1.0, 0.5, 2.0, -3.0])
    with torch.no_grad():
        output = detector(batch)
    assert output.regression["p4"][0, :, 0, 3, 2].tolist() == [1.0, 0.5, 2.0, 0.0]  # after the ReLU
    assert output.boxes["p4"][0, :, 0, 3, 2].tolist() == [32 - 16, 48 - 8, 32 + 32, 48]  # the point is (2, 3) x 16
    assert detector.info.layout.regression == "sides" and detector.info.layout.anchors == 1


def test_boxes_decode_as_torchvisions(small: Build, batch: Batch) -> None:
    detector = small("fcos").eval()
    with torch.no_grad():
        output = detector(batch)
    anchors = detector.grid(list(output.features.values()))
    coder = BoxLinearCoder(normalize_by_size=True)
    for level, boxes in zip(anchors, zip(output.regression.values(), output.boxes.values(), strict=True), strict=True):
        sides, decoded = (group[1, :, 0].flatten(1).T for group in boxes)
        assert torch.equal(decoded, coder.decode(sides, level))


def test_any_number_of_neck_channels(small: Build, batch: Batch) -> None:
    detector = small("fcos", neck_channels=20, head_convs=1).train()
    assert len(detector.model.head.classification_head.conv) == 3
    assert torch.isfinite(detector(batch).losses["classification"])
