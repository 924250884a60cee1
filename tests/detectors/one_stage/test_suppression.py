"""Suppression against torchvision's RetinaNet, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import BoxCoder

from detkds.detectors.one_stage.suppression import Suppression


@pytest.mark.parametrize(("topk", "most"), [(1000, 100), (40, 100), (1000, 7)])
def test_equals_torchvisions(topk: int, most: int, generator: torch.Generator) -> None:
    body = nn.Identity()
    body.out_channels = 8  # type: ignore[assignment]
    limits = {"score_thresh": 0.3, "nms_thresh": 0.4, "topk_candidates": topk, "detections_per_img": most}
    reference = RetinaNet(body, 3, head=nn.Identity(), **limits)  # type: ignore[arg-type]
    lengths, sizes = [60, 20, 1], [(60, 50), (64, 64)]
    logits, deltas = (torch.randn(2, 81, count, generator=generator) for count in (3, 4))
    corner = torch.rand(81, 2, generator=generator) * 50
    anchors = torch.cat((corner, corner + 4 + 20 * torch.rand(81, 2, generator=generator)), dim=1)
    split = {"cls_logits": list(logits.split(lengths, 1)), "bbox_regression": list(deltas.split(lengths, 1))}
    expected = reference.postprocess_detections(split, [list(anchors.split(lengths))] * 2, sizes)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    boxes = torch.stack([coder.decode_single(one, anchors) for one in deltas])
    found = Suppression(0.3, 0.4, topk, most)(logits.sigmoid(), boxes, lengths, sizes)
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 < len(ours.boxes) <= most
        assert torch.equal(ours.boxes, theirs["boxes"]) and torch.equal(ours.labels, theirs["labels"])
        assert torch.allclose(ours.scores, theirs["scores"], rtol=1e-6)


def test_duplicates_go_within_a_class_only() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [-5, 20, 30, 99], [0, 0, 10, 10]]])
    scores = torch.tensor([[[0.6, 0.0], [0.7, 0.0], [0.2, 0.1], [0.0, 0.5]]])
    [found] = Suppression(0.1, 0.5, 10, 10)(scores, boxes, [3, 1], [(40, 20)])
    assert found.labels.tolist() == [0, 1, 0]  # 0.1 is not above the threshold
    assert found.scores.tolist() == pytest.approx([0.7, 0.5, 0.2])
    assert found.boxes.tolist() == [[0, 0, 10, 9], [0, 0, 10, 10], [0, 20, 20, 40]]


def test_nothing_above_the_threshold() -> None:
    [found] = Suppression(0.5, 0.5, 10, 10)(torch.zeros(1, 6, 2), torch.zeros(1, 6, 4), [4, 2], [(8, 8)])
    assert found.boxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)
