"""Weights: round trips, torchvision's files, all-or-nothing loading, and faults that name what is wrong."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from detkds.detectors.backbones import build_backbone
from detkds.detectors.pyramid import one_stage_pyramid, two_stage_pyramid
from detkds.detectors.weights import load_weights, save_weights, stored_class_names, weights_content
from detkds.errors import WeightsError
from detkds.structures import Batch

Build = Callable[..., Any]
NAMES = ("retinanet", "fcos", "faster_rcnn")


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str, small: Build, tmp_path: Path) -> None:
    source, target = small(name, seed=1), small(name, seed=2)
    path = tmp_path / "deep" / "weights.safetensors"
    save_weights(source, path)
    assert load_weights(target, path) == []
    for key, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[key]), key
    with safe_open(path, "pt") as file:
        assert file.metadata()["detector"] == name and '"bee"' in file.metadata()["class_names"]
    assert [p.name for p in path.parent.iterdir()] == ["weights.safetensors"]


def test_equal_weights_have_equal_content(small: Build) -> None:
    detector = small("retinanet")
    assert len({weights_content(detector) for _ in range(12)}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_saved_file_loads_into_torchvisions_model(name: str, small: Build, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    detector = small(name)
    save_weights(detector, path)
    if name == "faster_rcnn":
        plain: Any = detection.FasterRCNN(
            two_stage_pyramid(build_backbone("narrow8", (4, 8, 16, 32)), 32),
            rpn_anchor_generator=AnchorGenerator(((8,),) * 5, ((0.5, 1.0, 2.0),) * 5),
            box_head=TwoMLPHead(32 * 49, 32),
            box_predictor=FastRCNNPredictor(32, 4),
        )
    else:
        body = one_stage_pyramid(build_backbone("narrow8", (8, 16, 32)), 32)
        head = {"head": detector.get_submodule("model.head")} if name == "retinanet" else {}
        plain = getattr(detection, {"retinanet": "RetinaNet", "fcos": "FCOS"}[name])(body, 3, **head)
    plain.load_state_dict(load_file(path), strict=True)


def _torchvision_model(name: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "faster_rcnn":
            body = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
            return detection.FasterRCNN(body, 4, min_size=64, max_size=64, box_score_thresh=0.01)
        body = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
        )
        kind = {"retinanet": detection.RetinaNet, "fcos": detection.FCOS}[name]
        return kind(body, 3, min_size=64, max_size=64, score_thresh=0.01, detections_per_img=100)


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_own_checkpoints_load_and_predict_alike(name: str, small: Build, tmp_path: Path) -> None:
    """Published files name the body's tensors as timm does, have no counters, and FPN names of an older version."""
    theirs = _torchvision_model(name).eval()
    old = {
        key.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if "_blocks." in key else key: tensor
        for key, tensor in theirs.state_dict().items()
    }
    torch.save(old, tmp_path / "model.pth")
    options: dict[str, Any] = {"frozen_norm": True, "backbone": "resnet18", "neck_channels": 256}
    if name == "faster_rcnn":
        options |= {"score_threshold": 0.01, "representation": 1024}
        options |= {"rpn_pre_nms_predict": 1000, "rpn_post_nms_predict": 1000}
    else:
        options |= {"score_threshold": 0.01} | ({"head_norm": "none"} if name == "retinanet" else {})
    ours = small(name, **options).eval()
    assert load_weights(ours, tmp_path / "model.pth") == []
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = theirs.backbone((image - ours.mean) / ours.std)
        batch = Batch(image, torch.tensor([[64, 64]]), (0,))
        output, found, expected = ours(batch), ours.predict(batch)[0], theirs([image[0]])[0]
    for mine, other in zip(output.features.values(), features.values(), strict=True):
        assert torch.allclose(mine, other, atol=1e-4)
    assert len(found.boxes) == len(expected["boxes"]) > 0
    assert torch.allclose(found.scores, expected["scores"], atol=1e-5)
    assert torch.allclose(found.boxes, expected["boxes"], atol=1e-2)


def test_state_dict_names_are_taken_too(small: Build, tmp_path: Path) -> None:
    source, target = small("fcos", seed=1), small("fcos", seed=2)
    torch.save({"state_dict": source.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    assert load_weights(target, str(tmp_path / "checkpoint.pt")) == []
    assert torch.equal(target.state_dict()["model.head.classification_head.cls_logits.bias"],
                       source.state_dict()["model.head.classification_head.cls_logits.bias"])  # fmt: skip


def test_missing_left_over_and_wrong_are_all_named_and_nothing_changes(small: Build, tmp_path: Path) -> None:
    detector = small("retinanet")
    state = {name: tensor + 1 for name, tensor in detector.home_state_dict().items()}
    del state["head.regression_head.bbox_reg.bias"]
    state["head.extra"] = torch.zeros(1)
    state["backbone.fpn.inner_blocks.0.0.weight"] = torch.zeros(2, 2)
    save_file(state, tmp_path / "bad.safetensors")
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(detector, tmp_path / "bad.safetensors")
    faults = caught.value.faults
    assert len(faults) == 3
    assert "lacks 1" in faults[0] and "head.regression_head.bbox_reg.bias" in faults[0]
    assert "1 tensors unknown" in faults[1] and "head.extra" in faults[1]
    assert "expected shape (32, 16, 1, 1), got (2, 2)" in faults[2]
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_other_classes_are_named_and_may_be_left_out(name: str, small: Build, tmp_path: Path) -> None:
    many = small(name, seed=1, class_names=[f"c{i}" for i in range(7)])
    save_weights(many, tmp_path / "many.safetensors")
    few = small(name, seed=2)
    with pytest.raises(WeightsError, match="is for 7 classes") as caught:
        load_weights(few, tmp_path / "many.safetensors")
    assert f"{name} has 3" in str(caught.value)
    with pytest.warns(RuntimeWarning, match="keep their start"):
        left = load_weights(few, tmp_path / "many.safetensors", partial=True)
    assert left and all("cls" in key or "bbox_pred" in key for key in left)
    body = [key for key in few.state_dict() if few.is_backbone(key)]
    assert all(torch.equal(few.state_dict()[key], many.state_dict()[key]) for key in body)


def test_partial_refuses_a_file_of_which_nothing_fits(small: Build, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "alien.safetensors")
    with pytest.raises(WeightsError, match="none of the 1 tensors"):
        load_weights(small("fcos"), tmp_path / "alien.safetensors", partial=True)


def test_failed_write_keeps_the_old_file(small: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WeightsError, match="No space left"):
        save_weights(small("fcos"), path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]


def test_class_names_are_read_back_where_we_wrote_them(small: Any, tmp_path: Path) -> None:
    save_weights(small("retinanet", class_names=("b", "a")), tmp_path / "ours.safetensors")
    assert stored_class_names(tmp_path / "ours.safetensors") == ("b", "a")
    save_file({"x": torch.zeros(1)}, tmp_path / "theirs.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"none")
    torch.save({"x": torch.zeros(1)}, tmp_path / "weights.pt")
    for name in ("theirs.safetensors", "broken.safetensors", "weights.pt", "absent.safetensors"):
        assert stored_class_names(tmp_path / name) is None


def _wrapped(state: dict[str, Tensor]) -> dict[str, Any]:
    """What common training scripts save."""
    return {
        "references": {
            "model": state,
            "optimizer": {},
            "epoch": 3,
            "args": argparse.Namespace(lr=0.02, path=Path("x")),
        },
        "compiled": {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        "averaged": {"n_averaged": torch.tensor(5), **{f"module.{name}": tensor for name, tensor in state.items()}},
        "lightning": {
            "state_dict": {f"detector._orig_mod.{name}": tensor for name, tensor in state.items()},
            "hyper_parameters": {"lr": np.float64(0.1)},
        },
        "wrapped twice": {f"module.model.{name}": tensor for name, tensor in state.items()},
    }


@pytest.mark.parametrize("kind", _wrapped({}))
def test_files_of_training_scripts_load(kind: str, small: Build, tmp_path: Path) -> None:
    source, target = small("fcos", seed=1), small("fcos", seed=2)
    torch.save(_wrapped(source.home_state_dict())[kind], tmp_path / "checkpoint.pth")
    assert load_weights(target, tmp_path / "checkpoint.pth") == []
    assert all(torch.equal(tensor, target.state_dict()[name]) for name, tensor in source.state_dict().items())


def test_of_two_models_under_prefixes_none_is_guessed(small: Build, tmp_path: Path) -> None:
    state = small("fcos").home_state_dict()
    both = {f"{prefix}.{name}": tensor for prefix in ("student", "teacher") for name, tensor in state.items()}
    torch.save(both, tmp_path / "both.pth")
    with pytest.raises(WeightsError, match=r"several models of this kind, under 'student\.' and 'teacher\.'"):
        load_weights(small("fcos"), tmp_path / "both.pth")


def test_a_file_of_another_library_is_recognized(small: Build, tmp_path: Path) -> None:
    names = ("backbone.layer1.0.conv1.weight", "neck.lateral_convs.0.conv.weight", "bbox_head.gfl_cls.weight")
    torch.save({"meta": {}, "state_dict": {name: torch.zeros(1) for name in names}}, tmp_path / "mm.pth")
    with pytest.raises(WeightsError, match=r"looks like mmdetection \(GFL\): .*detector: hooked"):
        load_weights(small("gfl"), tmp_path / "mm.pth")
