"""The levels that detectors of the transformers library announce are those of their maps, whatever the body."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from detkds.detectors import build_detector
from detkds.detectors.transformers.detector import TransformersDetector
from detkds.detectors.transformers.parts import body_strides
from detkds.errors import ConfigError
from detkds.structures import Batch

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="the transformers library is not installed")

SINGLE = ("detr", "conditional_detr", "dab_detr")
DILATED: dict[str, Any] = {"config": {"dilation": True}}
ONE_LEVEL = {"num_feature_levels": 1}
LIBRARY_BODY = {"model_type": "resnet", "depths": [1] * 4, "hidden_sizes": [8] * 4, "layer_type": "basic"}
VIT = {"model_type": "dinov2", "patch_size": 14, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    *((name, {}, (16,)) for name in SINGLE),
    *((name, {"backbone": "test_resnet"}, (32,)) for name in SINGLE),
    *((name, {"backbone": "test_resnet", **DILATED}, (16,)) for name in SINGLE),
    ("detr", {"backbone": "resnet18"}, (32,)),
    ("detr", {"backbone": "resnet18", **DILATED}, (16,)),
    ("detr", {"config": {"backbone_config": LIBRARY_BODY}}, (32,)),
    ("detr", {"config": {"backbone_config": {**LIBRARY_BODY, "downsample_in_first_stage": True}}}, (64,)),
    ("detr", {"config": {"backbone_config": {**LIBRARY_BODY, "out_features": ["stage2"]}}}, (8,)),
    ("deformable_detr", {}, (8, 16, 32, 64)),
    ("deformable_detr", {"backbone": "resnet18"}, (8, 16, 32, 64)),
    ("deformable_detr", {"config": {"num_feature_levels": 3}}, (8, 16, 32)),
    ("deformable_detr", {"config": ONE_LEVEL}, (16,)),
    ("deformable_detr", {"backbone": "test_resnet", "config": ONE_LEVEL}, (32,)),
    ("deformable_detr", {"backbone": "test_resnet", "config": {**ONE_LEVEL, "dilation": True}}, (16,)),
    *((name, {"backbone": "test_resnet"}, (8, 16, 32)) for name in ("rt_detr", "rt_detr_v2", "d_fine", "deim_v2")),
]


def small(name: str, **options: Any) -> TransformersDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        detector = build_detector(name, ["ant", "bee"], size="nano", **options)
    assert isinstance(detector, TransformersDetector)
    return detector


def check_levels(detector: TransformersDetector, batch: Batch, strides: tuple[int, ...]) -> None:
    """The announced strides are these, and those of the maps: another number of tokens could not be shared out."""
    features = detector.info.features
    assert tuple(spec.stride for spec in features.values()) == strides
    with torch.no_grad():
        maps = detector.eval()(batch).features
    height, width = batch.images.shape[-2:]
    for level, spec in features.items():
        assert maps[level].shape[2:] == (-(-height // int(spec.stride)), -(-width // int(spec.stride)))


@pytest.mark.parametrize(
    ("name", "options", "strides"), CASES, ids=lambda one: one if isinstance(one, str) else "".join(str(one).split())
)
def test_announced_levels_are_those_of_the_maps(
    name: str, options: dict[str, Any], strides: tuple[int, ...], batch_of: Callable[..., Batch]
) -> None:
    check_levels(small(name, **options), batch_of([[]], (96, 160)), strides)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SINGLE, "deformable_detr"])
@pytest.mark.parametrize("dilation", [False, True])
def test_the_librarys_default_body(name: str, dilation: bool, batch_of: Callable[..., Batch]) -> None:
    config = {"backbone_config": None, "dilation": dilation, **(ONE_LEVEL if name == "deformable_detr" else {})}
    check_levels(small(name, config=config), batch_of([[]], (96, 160)), (16,) if dilation else (32,))


def test_a_dilated_body_keeps_its_level_when_it_is_loaded(tmp_path: Path, batch_of: Callable[..., Batch]) -> None:
    small("detr", backbone="test_resnet", **DILATED).save_pretrained(tmp_path)
    detector = build_detector("detr", ["ant", "bee"], pretrained=str(tmp_path))
    assert isinstance(detector, TransformersDetector)
    check_levels(detector, batch_of([[]], (96, 160)), (16,))


@pytest.mark.parametrize("name", [*SINGLE, "deformable_detr"])
def test_dilation_that_changes_nothing_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dilation: .*expected a timm model as backbone"):
        small(name, **DILATED)
    with pytest.raises(ConfigError, match=r"dilation: .*output_stride: 16"):
        small(name, config={"dilation": True, "backbone_config": {**LIBRARY_BODY, "out_features": ["stage4"]}})
    small(name).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"dilation: .*leaves it out"):
        build_detector(name, ["ant", "bee"], pretrained=str(tmp_path), **DILATED)


def test_levels_that_cannot_be_told_apart_or_made_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"levels of different strides, got \(8, 16, 16, 32\)"):
        small("deformable_detr", backbone="test_resnet", **DILATED)
    with pytest.raises(ConfigError, match="num_feature_levels: expected at least 3, the maps of the body, got 2"):
        small("deformable_detr", config={"num_feature_levels": 2})
    with pytest.raises(ConfigError, match="strides are powers of 2; 128 pixels give it maps of 9 cells"):
        small("detr", config={"backbone_config": VIT})


def test_measuring_leaves_the_body_as_it_was() -> None:
    detector = small("detr").train()
    before = {name: tensor.clone() for name, tensor in detector.model.state_dict().items()}
    modes = [module.training for module in detector.modules()]
    assert body_strides(detector.model) == [16]
    assert modes == [module.training for module in detector.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.model.state_dict().items())
