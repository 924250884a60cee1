"""Folders that torchvision and timm load, in a process that must not import this package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from detkds.detectors import Detector, build_detector, narrow
from detkds.errors import ConfigError
from detkds.exporters import standalone
from detkds.exporters.home import AT_HOME, home_settings, write_home
from detkds.structures import Batch

SIZE = 64
SCRIPT = """
import importlib, sys, torch
torch.set_num_threads(1)
sys.modules["detkds"] = None  # any import of it fails
images = torch.load("images.pt")
for name in sys.argv[1:]:
    sys.path.insert(0, name)
    for module in ("load", "narrow"):
        sys.modules.pop(module, None)
    model = importlib.import_module("load").load()
    with torch.no_grad():
        found = [model([image[0]])[0] for image in images]
    torch.save([{key: one[key] for key in ("boxes", "scores", "labels")} for one in found], f"{name}.pt")
"""


def same_as_torchvision(detector: Detector, images: list[Tensor], found: list[dict[str, Tensor]]) -> int:
    """How many detections were compared."""
    background = int(detector.info.layout.activation == "softmax")
    count = 0
    for image, other in zip(images, found, strict=True):
        with torch.no_grad():
            [ours] = detector.predict(Batch(image, torch.tensor([[SIZE, SIZE]]), (0,)))
        torch.testing.assert_close(ours.boxes, other["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(ours.scores, other["scores"], atol=1e-5, rtol=0)
        assert torch.equal(ours.labels + background, other["labels"])
        count += len(ours.boxes)
    return count


@pytest.mark.parametrize("name", AT_HOME)
def test_torchvisions_model_finds_the_same(
    name: str,
    trained: Callable[[str], Detector],
    options_of: Any,
    images: list[Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = trained(name)
    write_home(detector, name, options_of(name), SIZE, tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    model = standalone.load(tmp_path)
    sys.modules.pop("narrow")
    with torch.no_grad():
        found = [model([image[0]])[0] for image in images]
    assert same_as_torchvision(detector, images, found) > 10
    settings = json.loads((tmp_path / "model.json").read_text())
    assert settings["classes"][-2:] == list(detector.class_names)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_does_so_where_this_package_cannot_be_imported(
    trained: Callable[[str], Detector], options_of: Any, images: list[Tensor], tmp_path: Path
) -> None:
    for name in AT_HOME:
        write_home(trained(name), name, options_of(name), SIZE, tmp_path / name)
    torch.save(images, tmp_path / "images.pt")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *AT_HOME], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    for name in AT_HOME:
        assert same_as_torchvision(trained(name), images, torch.load(tmp_path / f"{name}.pt")) > 10


@pytest.mark.parametrize("module", [standalone, narrow])
def test_what_is_copied_imports_nothing_of_this_package(module: ModuleType) -> None:
    assert "detkds" not in Path(str(module.__file__)).read_text()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("retinanet", {"backbone": "resnet10t", "head_norm": "none", "frozen_norm": True, "p6_from": "c5"}),
        ("fcos", {"backbone": "swin_tiny", "backbone_options": {"embed_dim": 24, "depths": (1, 1, 1, 1)}}),
        ("faster_rcnn", {"backbone": "regnetx_002", "representation": 16, "roi_resolution": 3}),
    ],
)
def test_any_body_is_built_anew(name: str, options: dict[str, Any]) -> None:
    """Weights go in by name and give the same features."""
    torch.manual_seed(0)
    options = {"neck_channels": 32, **options}
    detector = build_detector(name, ["a", "b"], **options).eval()
    model = standalone.build(json.loads(json.dumps(home_settings(detector, name, options, 96)))).eval()
    model.load_state_dict(detector.home_state_dict())
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        ours, theirs = detector.get_submodule("model.backbone")(images), model.backbone(images)  # type: ignore[operator]
    assert list(ours) == list(theirs)
    for level in ours:
        torch.testing.assert_close(ours[level], theirs[level])


def test_a_detector_of_no_library_is_refused(trained: Callable[[str], Detector], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gfl has no home library.*\(they have faster_rcnn, .*--format onnx"):
        write_home(trained("retinanet"), "gfl", {}, SIZE, tmp_path / "gfl")
    assert not (tmp_path / "gfl").exists()


def test_a_detector_that_saves_itself_is_asked_to(trained: Callable[[str], Detector], tmp_path: Path) -> None:
    class Adapter(nn.Module):
        def save_pretrained(self, folder: Path) -> None:
            (folder / "config.json").write_text("{}")

    write_home(Adapter(), "rt_detr", {}, SIZE, tmp_path / "deep" / "folder")  # type: ignore[arg-type]
    assert (tmp_path / "deep" / "folder" / "config.json").exists()


def test_a_foreign_detector_keeps_its_own_names(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    detector = build_detector("hooked", ["a"], model=model, features={"x": ["0", 1]})
    write_home(detector, "hooked", {}, SIZE, tmp_path)
    nn.Sequential(nn.Conv2d(3, 4, 1)).load_state_dict(load_file(tmp_path / "model.safetensors"))
