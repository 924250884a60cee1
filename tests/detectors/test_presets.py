"""torchvision's published detectors: their files load by name alone and predict what torchvision's models predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import detection, get_model_weights, list_models
from torchvision.models.detection._utils import overwrite_eps
from torchvision.ops.misc import FrozenBatchNorm2d

from detkds.detectors import build_detector
from detkds.detectors.presets import PREFIX, find_preset, preset_names
from detkds.detectors.weights import load_weights
from detkds.errors import WeightsError
from detkds.structures import Batch

SIZE = 128


def _published(name: str) -> Any:
    """torchvision's model as it is with its published weights, here with random ones that find something."""
    first = not name.endswith("_v2")
    build = getattr(detection, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(weights=None, weights_backbone=None, min_size=SIZE, max_size=SIZE)
        if first:
            _freeze(model.backbone.body)
            if not name.startswith("fcos"):
                overwrite_eps(model, 0.0)
        for parameter_name, parameter in model.named_parameters():
            if "cls_logits" in parameter_name or "cls_score" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def _freeze(module: torch.nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features)
            frozen.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, frozen)
        else:
            _freeze(child)


@pytest.mark.parametrize("name", [name.removeprefix(PREFIX) for name in preset_names()])
def test_a_published_file_loads_and_predicts_as_at_home(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    preset, home = find_preset(PREFIX + name), _published(name)
    assert preset is not None
    file = tmp_path / "checkpoints" / Path(preset.address).name
    file.parent.mkdir()
    torch.save(home.state_dict(), file)
    assert preset.source == str(file) and find_preset(str(file)) == preset
    detector = build_detector(preset.detector, preset.class_names, **preset.options)
    assert load_weights(detector, preset.source) == []
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        [expected] = home([image[0]])
        [detections] = detector.eval().predict(Batch(image, torch.tensor([[SIZE, SIZE]]), (0,)))
    background = int(preset.detector in ("faster_rcnn", "mask_rcnn"))
    assert len(detections.boxes) == len(expected["boxes"]) > 0
    assert torch.equal(detections.labels + background, expected["labels"])
    torch.testing.assert_close(detections.scores, expected["scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(detections.boxes, expected["boxes"], atol=1e-2, rtol=0)


def test_names_stand_for_the_columns_that_torchvision_says() -> None:
    categories = get_model_weights("fcos_resnet50_fpn")["DEFAULT"].value.meta["categories"]
    regions, dense = find_preset(PREFIX + "fasterrcnn_resnet50_fpn"), find_preset(PREFIX + "fcos_resnet50_fpn")
    assert regions is not None and dense is not None
    assert len(regions.class_names) == 90 and len(dense.class_names) == 91
    for number, name in enumerate(categories[1:], start=1):
        assert dense.class_names[number] == regions.class_names[number - 1] == name


def test_every_published_detector_is_a_preset_or_refused_with_a_reason() -> None:
    for name in list_models(module=detection):
        if PREFIX + name not in preset_names():
            with pytest.raises(WeightsError, match=f"{name} cannot be built here: .*hooked"):
                find_preset(PREFIX + name)
    with pytest.raises(WeightsError, match="did you mean 'torchvision/fcos_resnet50_fpn'"):
        find_preset("torchvision/fcos_resnet5_fpn")
    assert find_preset("runs/first/student.safetensors") is None
