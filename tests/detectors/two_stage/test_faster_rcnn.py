"""Faster R-CNN against torchvision's own model on identical weights, inputs and draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torchvision.models.detection import FasterRCNN as Reference
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from detkds.structures import Batch

Build = Callable[..., Any]


def _reference(detector: Any, **options: float) -> Reference:
    """torchvision's model with its own parts, filled with the detector's weights."""
    model = detector.get_submodule("model")
    reference = Reference(
        model.backbone,
        min_size=128,
        max_size=128,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5),
        box_roi_pool=MultiScaleRoIAlign(["p2", "p3", "p4", "p5"], 7, 2),
        box_head=TwoMLPHead(32 * 49, 32),
        box_predictor=FastRCNNPredictor(32, 4),
        rpn_batch_size_per_image=32,
        box_batch_size_per_image=16,
        rpn_pre_nms_top_n_train=60,
        rpn_post_nms_top_n_train=30,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=30,
        **options,
    )
    reference.load_state_dict(detector.home_state_dict(), strict=True)
    return reference


def test_losses_equal_torchvisions(small: Build, batch: Batch) -> None:
    detector = small("faster_rcnn").train()
    reference = _reference(detector).train()
    targets = [{"boxes": t["boxes"], "labels": t["labels"] + 1} for t in batch.targets or []]
    # both draw after the shared backbone; torchvision's resizing draws once before it
    detector.get_submodule("model.backbone").register_forward_hook(lambda *_: torch.manual_seed(7) and None)
    with torch.random.fork_rng():
        ours = detector(batch).losses
        theirs = reference(list(batch.images), targets)
    assert set(ours) == set(theirs) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg"}
    for key, loss in theirs.items():
        assert loss > 0 and torch.allclose(ours[key], loss, rtol=1e-5), key


def test_predictions_equal_torchvisions(small: Build, batch: Batch) -> None:
    detector = small("faster_rcnn", score_threshold=0.05).eval()
    reference = _reference(detector).eval()
    with torch.no_grad():
        ours, theirs = detector.predict(batch), reference(list(batch.images))
    for one, other in zip(ours, theirs, strict=True):
        assert len(one.boxes) > 0
        assert torch.allclose(one.boxes, other["boxes"], atol=1e-4)
        assert torch.allclose(one.scores, other["scores"], atol=1e-6)
        assert torch.equal(one.labels + 1, other["labels"])


def test_teacher_answers_at_the_students_proposals(small: Build, batch: Batch) -> None:
    student, teacher = small("faster_rcnn").train(), small("faster_rcnn", backbone="narrow16", seed=4).eval()
    output = student(batch)
    calls: list[str] = []
    for part in ("backbone", "rpn.head"):
        teacher.get_submodule(f"model.{part}").register_forward_hook(lambda *_, part=part: calls.append(part))
    with torch.no_grad():
        answer = teacher(batch)
        assert answer.proposals is None and not answer.logits
        response = answer.respond_at(output.proposals)
        again = answer.respond_at([boxes[:3] for boxes in output.proposals])
    assert calls == ["backbone"]  # one pass, and no proposals of its own
    for name in ("logits", "regression", "boxes"):
        assert getattr(response, name).shape == getattr(output, name)["roi"].shape
        first = getattr(response, name)[:3]
        assert torch.allclose(getattr(again, name)[:3], first, atol=1e-4)


def test_respond_at_own_proposals_repeats_the_pass(small: Build, batch: Batch) -> None:
    output = small("faster_rcnn").train()(batch)
    response = output.respond_at(output.proposals)
    assert torch.equal(response.logits, output.logits["roi"])
    assert torch.equal(response.boxes, output.boxes["roi"])
    assert response.logits.requires_grad


def test_boxes_decode_per_class(small: Build, batch: Batch) -> None:
    detector = small("faster_rcnn").eval()
    torch.nn.init.zeros_(detector.model.roi_heads.box_predictor.bbox_pred.weight)
    bias = torch.zeros(16)
    bias[4 * 2] = 1.0  # column 2 moves right by a tenth of the width
    bias[4 * 3 + 2] = 5 * torch.log(torch.tensor(2.0))  # column 3 is twice as wide
    detector.model.roi_heads.box_predictor.bbox_pred.bias.data = bias
    proposals = [torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[0.0, 0, 40, 40]])]
    with torch.no_grad():
        response = detector(batch).respond_at(proposals)
    assert response.boxes.shape == (2, 4, 4)
    assert torch.allclose(response.boxes[0, :, 0], torch.tensor([10.0, 20, 30, 60]))
    assert torch.allclose(response.boxes[0, :, 2], torch.tensor([12.0, 20, 32, 60]))
    assert torch.allclose(response.boxes[1, :, 3], torch.tensor([-20.0, 0, 60, 40]))
    assert torch.equal(response.regression[0, :, 2], torch.tensor([1.0, 0, 0, 0]))


def test_no_proposals_and_empty_images(small: Build, batch: Batch) -> None:
    answer = small("faster_rcnn").train()(batch)
    nothing = answer.respond_at([torch.zeros(0, 4), torch.zeros(0, 4)])
    assert nothing.logits.shape == (0, 4) and nothing.boxes.shape == nothing.regression.shape == (0, 4, 4)
    one = answer.respond_at([torch.zeros(0, 4), torch.tensor([[1.0, 2, 30, 40]])])
    assert one.logits.shape == (1, 4)


def test_pooling_scale_does_not_depend_on_the_first_batch(small: Build, batch: Batch) -> None:
    """torchvision infers the pooling scale once, from the first valid areas it is shown; ours is the true one."""
    proposals = [torch.tensor([[4.0, 4, 40, 40]])] * 2
    fresh, used = small("faster_rcnn").eval(), small("faster_rcnn").eval()
    narrow = replace(batch, image_sizes=torch.tensor([[64, 60], [50, 64]]))
    with torch.no_grad():
        used.predict(narrow)
        expected, got = (d(batch).respond_at(proposals) for d in (fresh, used))
    assert torch.equal(expected.logits, got.logits)


def test_own_generator_makes_draws_reproducible(small: Build, batch: Batch) -> None:
    detector = small("faster_rcnn", roi_samples=8).train()
    before = torch.random.get_rng_state()
    taken = []
    for seed in (1, 1, 2):
        detector.draw_from(torch.Generator().manual_seed(seed))
        taken.append(torch.cat(detector(batch).proposals))
    assert torch.equal(taken[0], taken[1]) and not torch.equal(taken[0], taken[2])
    assert torch.equal(before, torch.random.get_rng_state())


def test_responses_outside_autocast_after_a_pass_inside(small: Build, batch: Batch) -> None:
    teacher = small("faster_rcnn").eval()
    proposals = [torch.tensor([[4.0, 4, 40, 40]])] * 2
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            answer = teacher(batch)
        assert answer.features["p2"].dtype == torch.bfloat16
        response = answer.respond_at(proposals)
        exact = teacher(batch).respond_at(proposals)
    assert response.logits.dtype == torch.float32
    assert torch.allclose(response.logits, exact.logits, atol=0.05)


@pytest.mark.parametrize("resolution", [3, 7])
def test_region_options(small: Build, batch: Batch, resolution: int) -> None:
    detector = small("faster_rcnn", roi_resolution=resolution, roi_canonical_size=64, anchor_scales=[4, 8]).train()
    assert detector.model.roi_heads.box_head.fc6.in_features == 32 * resolution**2
    assert detector.proposals.grid.per_cell == 6
    output = detector(batch)
    assert all(len(boxes) == 16 for boxes in output.proposals)
    layout = detector.info.layout
    assert (layout.kind, layout.activation, layout.regression) == ("region", "softmax", "deltas")
