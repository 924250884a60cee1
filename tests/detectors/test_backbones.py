"""Bodies: maps of the right strides and channels for every named model, weights, and clear refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detkds.detectors.backbones import NarrowNet, build_backbone
from detkds.detectors.pyramid import one_stage_pyramid, two_stage_pyramid
from detkds.errors import UserError, WeightsError

NAMED = {
    "narrow16": (16, 32, 64, 128),
    "narrow32": (32, 64, 128, 256),
    "narrow10": (10, 20, 40, 80),
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "resnext101": (256, 512, 1024, 2048),
    "resnext101_32x4d": (256, 512, 1024, 2048),
    "swin_small": (96, 192, 384, 768),
    "convnext_tiny": (96, 192, 384, 768),
    "mobilenetv3_small_100": (16, 24, 48, 576),
}


@pytest.mark.parametrize("name", NAMED)
def test_shapes_of_named_backbones(name: str) -> None:
    with torch.device("meta"):  # shapes only: no memory, no time
        backbone = build_backbone(name, (4, 8, 16, 32))
        pyramid = two_stage_pyramid(backbone, 16)
        levels = pyramid(torch.zeros(2, 3, 64, 96))
    assert tuple(backbone.channels) == (4, 8, 16, 32)
    if name != "mobilenetv3_small_100":
        assert tuple(backbone.channels.values()) == NAMED[name]
    assert {level: tuple(f.shape) for level, f in levels.items()} == {
        "p2": (2, 16, 16, 24),
        "p3": (2, 16, 8, 12),
        "p4": (2, 16, 4, 6),
        "p5": (2, 16, 2, 3),
        "p6": (2, 16, 1, 2),
    }


def test_swin_maps_are_turned_to_channels_first() -> None:
    backbone = build_backbone("swin_tiny", (8, 16, 32), options={"embed_dim": 24, "depths": (1, 1, 1, 1)})
    assert backbone.channels_last
    pyramid = one_stage_pyramid(backbone, 8).eval()
    with torch.no_grad():
        raw = backbone.network(torch.ones(1, 3, 64, 64))
        lateral = pyramid.fpn.inner_blocks[2](raw[3].permute(0, 3, 1, 2))
        p5 = pyramid(torch.ones(1, 3, 64, 64))["p5"]
        assert torch.allclose(p5, pyramid.fpn.layer_blocks[2](lateral), atol=1e-6)
    assert raw[3].shape == (1, 2, 2, 192)


def test_narrow_flops_grow_with_width_and_all_maps_are_trained() -> None:
    network = NarrowNet(8)
    maps = network(torch.rand(2, 3, 64, 64))
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert [m.shape[-1] for m in maps] == [16, 8, 4, 2]


def test_frozen_norm_keeps_statistics() -> None:
    backbone = build_backbone("narrow8", (8, 16, 32), frozen_norm=True)
    kinds = {type(module) for module in backbone.network.modules()}
    assert FrozenBatchNorm2d in kinds and nn.BatchNorm2d not in kinds
    assert "stem.0.1.running_mean" in backbone.network.state_dict()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet5O", ["resnet5O", "resnet50"]),
        ("narrow", ["narrow", "narrow16"]),
        ("narrow0", ["narrow0"]),
        ("vit_tiny_patch16_224", ["strides 8, 16, 32", "16"]),
        (7, ["7"]),
    ],
)
def test_unusable_names_are_refused_with_help(name: Any, parts: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        build_backbone(name, (8, 16, 32))
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_refused_options() -> None:
    with pytest.raises(UserError, match=r"resnet18.*color"):
        build_backbone("resnet18", (8, 16, 32), options={"color": 1})
    with pytest.raises(UserError, match=r"narrow8.*color"):
        build_backbone("narrow8", (8, 16, 32), options={"color": 1})
    with pytest.raises(WeightsError, match="no pretrained"):
        build_backbone("narrow8", (8, 16, 32), weights="pretrained")


def test_classifier_weights_from_file(tmp_path: Path) -> None:
    classifier = timm.create_model("resnet10t", num_classes=5)
    path = tmp_path / "resnet10t.pth"
    torch.save({"state_dict": classifier.state_dict()}, path)
    backbone = build_backbone("resnet10t", (8, 16, 32), weights=str(path))
    state = backbone.network.state_dict()
    assert state and all(torch.equal(tensor, classifier.state_dict()[name]) for name, tensor in state.items())

    narrow = NarrowNet(8)
    save_file(narrow.state_dict(), tmp_path / "narrow.safetensors")
    loaded = build_backbone("narrow8", (8, 16, 32), weights=str(tmp_path / "narrow.safetensors")).network
    assert torch.equal(loaded.state_dict()["stem.0.0.weight"], narrow.state_dict()["stem.0.0.weight"])


@pytest.mark.parametrize("name", ["narrow16", "resnet18"])
def test_weights_of_another_body_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(NarrowNet(8).state_dict(), path)
    with pytest.raises(WeightsError, match=f"backbone {name}.*lacks"):
        build_backbone(name, (8, 16, 32), weights=str(path))


def test_unreachable_pretrained_weights_are_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no route")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(WeightsError, match=r"resnet18.*could not be fetched.*no route"):
        build_backbone("resnet18", (8, 16, 32), weights="pretrained")
