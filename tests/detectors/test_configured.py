"""Detectors from configurations: presets, folders of the transformers library, partial and trusted weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detkds.config import DetectorConfig
from detkds.detectors import build_detector
from detkds.detectors.configured import configured_detector, known_class_names
from detkds.detectors.weights import save_weights
from detkds.errors import ConfigError, UserError, WeightsError

CLASSES = ("ant", "bee", "cat")
SMALL: dict[str, Any] = {"detector": "fcos", "backbone": "narrow8", "options": {"neck_channels": 16, "head_convs": 1}}


def _small(class_names: tuple[str, ...] = CLASSES, seed: int = 0) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_detector("fcos", class_names, backbone="narrow8", **SMALL["options"])


def _equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_file_is_loaded_and_names_its_classes(tmp_path: Path) -> None:
    source = _small(seed=1)
    save_weights(source, tmp_path / "weights.safetensors")
    config = DetectorConfig(**SMALL, weights=str(tmp_path / "weights.safetensors"))
    assert known_class_names(config) == CLASSES
    assert _equal(configured_detector(config, CLASSES).state_dict(), source.state_dict())
    assert known_class_names(DetectorConfig(**SMALL, classes=("x",))) == ("x",)
    assert known_class_names(DetectorConfig(**SMALL)) is None


def test_weights_of_other_classes_are_loaded_in_part_where_that_is_asked_for(tmp_path: Path) -> None:
    save_weights(_small(("one", "two")), tmp_path / "weights.safetensors")
    config = DetectorConfig(**SMALL, weights=str(tmp_path / "weights.safetensors"))
    with pytest.raises(WeightsError, match=r"is for 2 classes, fcos has 3; .*set partial: true"):
        configured_detector(config, CLASSES)
    with pytest.warns(RuntimeWarning, match="keep their start.*cls_logits"):
        configured_detector(config.model_copy(update={"partial": True}), CLASSES)


def test_trust_is_handed_on(tmp_path: Path) -> None:
    torch.save({"model": _small().model}, tmp_path / "whole.pt")
    config = DetectorConfig(**SMALL, weights=str(tmp_path / "whole.pt"))
    with pytest.raises(WeightsError, match="set trust: true"):
        configured_detector(config, CLASSES)
    trusted = configured_detector(config.model_copy(update={"trust": True}), CLASSES)
    assert _equal(trusted.home_state_dict(), _small().home_state_dict())


def test_a_preset_brings_names_and_options_and_is_for_one_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr("detkds.detectors.configured.load_weights", lambda *args, **_: asked.append(args[1]))
    config = DetectorConfig(
        detector="fcos",
        backbone="narrow8",
        options={"neck_channels": 16, "score_threshold": 0.4},
        weights="torchvision/fcos_resnet50_fpn",
    )
    names = known_class_names(config)
    assert names is not None and len(names) == 91 and names.count("N/A") == 11
    detector: Any = configured_detector(config, names)
    assert detector.suppress.score_threshold == 0.4  # the configuration's own goes before
    assert asked[0].endswith("fcos_resnet50_fpn_coco-99b0c9b7.pth")
    assert any("FrozenBatchNorm" in type(module).__name__ for module in detector.model.backbone.body.modules())
    with pytest.raises(ConfigError, match="is for detector: fcos, got gfl"):
        configured_detector(config.model_copy(update={"detector": "gfl"}), names)


@pytest.mark.parametrize("weights", ["folder", "folder/model.safetensors"])
def test_a_folder_of_the_transformers_library(weights: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        source: Any = build_detector("rt_detr", CLASSES, size="nano")
    source.save_pretrained(tmp_path / "folder")
    config = DetectorConfig(detector="rt_detr", weights=str(tmp_path / weights))
    names = known_class_names(config)
    assert names == CLASSES
    detector = configured_detector(config, names)
    loaded, given = detector.home_state_dict(), source.home_state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in loaded.items() if name in given)
    assert len(loaded.keys() & given.keys()) > 100
    other = configured_detector(config.model_copy(update={"partial": True}), ("dog",))
    assert other.class_names == ("dog",)


def test_faults_are_users_mistakes() -> None:
    with pytest.raises(UserError, match="nowhere"):
        configured_detector(DetectorConfig(detector="fcos", weights="nowhere.pth", **{"backbone": "narrow8"}), CLASSES)
    with pytest.raises(UserError, match="unknown option 'neck_chanels'"):
        configured_detector(DetectorConfig(detector="fcos", options={"neck_chanels": 1}), CLASSES)
