"""Mask R-CNN against torchvision's own model on identical weights, inputs and draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.detection import MaskRCNN as Reference
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign

from detkds.detectors.weights import load_weights
from detkds.errors import DataError, UserError, WeightsError
from detkds.structures import Batch, Target

Build = Callable[..., Any]


def _reference(detector: Any, classes: int = 3) -> Reference:
    """torchvision's model with its own parts around the detector's body."""
    levels = ["p2", "p3", "p4", "p5"]
    return Reference(
        detector.model.backbone,
        min_size=128,
        max_size=128,
        rpn_anchor_generator=AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5),
        box_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
        box_head=TwoMLPHead(32 * 49, 32),
        box_predictor=FastRCNNPredictor(32, classes + 1),
        mask_roi_pool=MultiScaleRoIAlign(levels, 7, 2),
        mask_head=MaskRCNNHeads(32, (16, 16), 1),
        mask_predictor=MaskRCNNPredictor(16, 16, classes + 1),
        rpn_batch_size_per_image=32,
        box_batch_size_per_image=16,
        rpn_pre_nms_top_n_train=60,
        rpn_post_nms_top_n_train=30,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=30,
    )


def _same(detector: Any) -> Reference:
    reference = _reference(detector)
    reference.load_state_dict(detector.home_state_dict(), strict=True)
    return reference


def test_losses_equal_torchvisions(small: Build, batch: Batch) -> None:
    detector = small("mask_rcnn").train()
    reference = _same(detector).train()
    targets = [{"boxes": t["boxes"], "labels": t["labels"] + 1, "masks": t["masks"]} for t in batch.targets or []]
    # both draw after the shared backbone; torchvision's resizing draws once before it
    detector.get_submodule("model.backbone").register_forward_hook(lambda *_: torch.manual_seed(7) and None)
    with torch.random.fork_rng():
        ours = detector(batch).losses
        theirs = reference(list(batch.images), targets)
    assert set(ours) == set(theirs) and "loss_mask" in ours
    for key, loss in theirs.items():
        assert loss > 0 and torch.allclose(ours[key], loss, rtol=1e-5), key


def test_predictions_equal_torchvisions(small: Build, batch: Batch) -> None:
    detector = small("mask_rcnn").eval()
    reference = _same(detector).eval()
    with torch.no_grad():
        ours, theirs = detector.predict(batch), reference(list(batch.images))
    for one, other in zip(ours, theirs, strict=True):
        assert len(one.boxes) > 0 and one.masks is not None
        assert torch.allclose(one.boxes, other["boxes"], atol=1e-4)
        assert torch.equal(one.labels + 1, other["labels"])
        assert one.masks.dtype == torch.bool and one.masks.shape == (len(one.boxes), 128, 128)
        assert (one.masks != (other["masks"][:, 0] > 0.5)).float().mean() < 1e-4
        assert 0 < one.masks.float().mean() < 1


def test_masks_are_pasted_into_the_padded_batch(small: Build, batch: Batch) -> None:
    detector = small("mask_rcnn", score_threshold=0.0).eval()
    sizes = torch.tensor([[96, 70], [128, 128]])
    with torch.no_grad():
        first, second = detector.predict(replace(batch, image_sizes=sizes))
    assert first.masks.shape[1:] == second.masks.shape[1:] == (128, 128)
    rows, columns = first.masks.any(0).any(1), first.masks.any(0).any(0)
    assert not rows[98:].any() and not columns[72:].any()  # a mask reaches at most a cell beyond its box


def test_boxes_do_not_depend_on_the_mask_branch(small: Build, batch: Batch) -> None:
    """The same weights without the mask head are a Faster R-CNN with the same boxes."""
    masked, plain = small("mask_rcnn").eval(), small("faster_rcnn").eval()
    shared = plain.home_state_dict()
    with torch.no_grad():
        for name, tensor in masked.home_state_dict().items():
            if name in shared:
                shared[name].copy_(tensor)
        assert set(masked.home_state_dict()) - set(shared) == {
            f"roi_heads.{one}.{kind}"
            for one in ("mask_head.0.0", "mask_head.1.0", "mask_predictor.conv5_mask", "mask_predictor.mask_fcn_logits")
            for kind in ("weight", "bias")
        }
        for one, other in zip(masked.predict(batch), plain.predict(batch), strict=True):
            assert torch.equal(one.boxes, other.boxes) and other.masks is None


def test_what_it_needs_and_gives_is_announced(small: Build, batch: Batch) -> None:
    detector = small("mask_rcnn").train()
    assert detector.info.masks and not small("faster_rcnn").info.masks
    assert detector.info.layout == small("faster_rcnn").info.layout
    bare = [Target(boxes=t["boxes"], labels=t["labels"]) for t in batch.targets or []]
    with pytest.raises(DataError, match="mask_rcnn: expected targets with masks"):
        detector(replace(batch, targets=bare))
    nothing = [Target(boxes=t["boxes"][:0], labels=t["labels"][:0]) for t in bare]
    assert detector(replace(batch, targets=nothing)).losses["loss_mask"] == 0


def test_options_of_the_mask_branch(small: Build, batch: Batch) -> None:
    detector = small("mask_rcnn", mask_resolution=5, mask_convs=0, mask_channels=24)
    features = detector.model.backbone(batch.images)
    boxes = [torch.tensor([[3.0, 4, 50, 60]]), torch.zeros(0, 4)]
    assert detector.regions.masks(features, boxes, torch.tensor([2])).shape == (1, 10, 10)
    with pytest.raises(UserError) as caught:
        small("mask_rcnn", mask_resolution=0, mask_convs=-1, neck_channels=0, nms_threshold=2)
    assert len(caught.value.faults) == 4 and all(line.startswith("mask_rcnn: ") for line in caught.value.faults)
    with pytest.raises(UserError, match="'mask_convs'"):
        small("mask_rcnn", mask_conv=3)
    with pytest.raises(UserError, match="unknown option 'mask_convs'"):
        small("faster_rcnn", mask_convs=3)


def test_a_checkpoint_of_91_slots_is_named(small: Build, tmp_path: Path) -> None:
    """torchvision's COCO weights have 91 columns: the background and 90 categories, ten of them never used."""
    detector = small("mask_rcnn")
    published = _reference(detector, classes=90)
    save_file({k: v.clone() for k, v in published.state_dict().items()}, tmp_path / "coco.safetensors")
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(WeightsError, match="is for 90 classes, mask_rcnn has 3"):
        load_weights(detector, tmp_path / "coco.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.state_dict().items())
    with pytest.warns(RuntimeWarning, match="keep their start"):
        left = load_weights(detector, tmp_path / "coco.safetensors", partial=True)
    assert {name.rsplit(".", 2)[-2] for name in left} == {"cls_score", "bbox_pred", "mask_fcn_logits"}
    whole = small("mask_rcnn", class_names=[f"category {k}" for k in range(90)])
    assert load_weights(whole, tmp_path / "coco.safetensors") == []


def test_names_of_the_first_published_checkpoint(small: Build, tmp_path: Path) -> None:
    source, target = small("mask_rcnn", seed=1), small("mask_rcnn", seed=2)
    old = {}
    for name, tensor in source.home_state_dict().items():
        for layer in (0, 1):
            name = name.replace(f"mask_head.{layer}.0.", f"mask_head.mask_fcn{layer + 1}.")
        old[name] = tensor
    torch.save(old, tmp_path / "old.pth")
    assert "roi_heads.mask_head.mask_fcn2.weight" in old
    load_weights(target, tmp_path / "old.pth")
    assert all(torch.equal(one, target.home_state_dict()[name]) for name, one in source.home_state_dict().items())


def test_pasting_equals_torchvisions_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from detkds.detectors.two_stage import masks

    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(7, 14, 14, generator=generator)
    corners = torch.rand(7, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + 3 + torch.rand(7, 2, generator=generator) * 30], 1)
    expected = paste_masks_in_image(probabilities[:, None], boxes, (50, 60))[:, 0] > 0.5
    for most in (1, 2 * 50 * 60, 2**24):
        monkeypatch.setattr(masks, "_MOST_PIXELS", most)
        assert torch.equal(masks.paste(probabilities, boxes, (50, 60)), expected)
    assert masks.paste(probabilities[:0], boxes[:0], (50, 60)).shape == (0, 50, 60)


def test_crops_by_hand_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of the left half of a box of 8 x 8 pixels, seen by 4 x 4 cells of 2 x 2 samples each.

    Samples lie at .5 and 1.5 of a cell, and pixel k has its value at k: one of two samples at an edge is halved.
    """
    from detkds.detectors.two_stage import masks

    whole = torch.zeros(3, 20, 20, dtype=torch.bool)
    whole[0, 4:12, 4:8] = True
    whole[2] = True
    boxes = torch.tensor([[4.0, 4, 12, 12], [0, 0, 8, 8], [4, 4, 12, 12]])
    for most in (1, 2**24):
        monkeypatch.setattr(masks, "_MOST_PIXELS", most)
        crops = masks.crop_masks(whole, boxes, torch.tensor([0, 2, 1]), 4)
        expected = torch.outer(torch.tensor([1, 1, 1, 0.75]), torch.tensor([1, 0.75, 0, 0]))
        assert torch.allclose(crops[0], expected)
        assert torch.equal(crops[1], torch.ones(4, 4)) and torch.equal(crops[2], torch.zeros(4, 4))
