"""ONNX files that find what the detector finds, in another runtime."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detkds.detectors import Detector, build_detector
from detkds.errors import ConfigError
from detkds.exporters.onnx_file import letterbox, one_image, require, write_onnx
from detkds.exporters.parity import compare, in_onnxruntime
from detkds.structures import Batch, Detections

SIZE = 64


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("fcos", "gfl", "mask_rcnn")]  # like one of the others


@pytest.mark.parametrize("name", ["retinanet", "reppoints", "faster_rcnn", *SLOW])
def test_onnxruntime_finds_what_torch_finds(
    name: str, trained: Callable[[str], Detector], images: list[Tensor], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    detector = trained(name)
    modes = [module.training for module in detector.modules()]
    module = one_image(detector, SIZE)
    write_onnx(module, images[0], tmp_path / "model.onnx")
    with torch.no_grad():
        parity = compare(module.detect, in_onnxruntime(tmp_path / "model.onnx"), images)
    assert parity.passed, parity
    assert parity.agreed == parity.expected == parity.detected
    assert parity.box_error < 0.01 and parity.score_error < 1e-4
    assert modes == [one.training for one in detector.modules()]
    counts = {len(in_onnxruntime(tmp_path / "model.onnx")(image).boxes) for image in images}
    assert len(counts) > 1 or counts == {100}
    facts = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "model.onnx")).metadata_props}
    assert json.loads(facts["class_names"]) == list(detector.class_names)
    assert json.loads(facts["mean_color"]) == [0.485, 0.456, 0.406]


def test_normalization_is_inside_and_the_mean_color_is_padding(trained: Callable[[str], Detector]) -> None:
    """A letterboxed image and a padded one are the same to the network."""
    detector = trained("retinanet")
    image = torch.rand(1, 3, 40, 52, generator=torch.Generator().manual_seed(0))
    square = letterbox(image, SIZE, detector.mean)
    padded = torch.zeros(1, 3, SIZE, SIZE)
    padded[..., :40, :52] = image
    ours = detector.normalize(Batch(square, torch.tensor([[SIZE, SIZE]]), (0,)))
    theirs = detector.normalize(Batch(padded, torch.tensor([[40, 52]]), (0,)))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr", "deformable_detr", "rt_detr", "d_fine", "lw_detr"])
def test_detectors_of_transformers(name: str, images: list[Tensor], tmp_path: Path) -> None:
    for package in ("transformers", "onnx", "onnxruntime"):
        pytest.importorskip(package)
    torch.manual_seed(0)
    module = one_image(build_detector(name, ["a", "b"], size="nano"), SIZE)
    write_onnx(module, images[0], tmp_path / "model.onnx")
    with torch.no_grad():
        parity = compare(module.detect, in_onnxruntime(tmp_path / "model.onnx"), images)
    assert parity.passed and parity.box_error < 0.01, parity


def test_a_single_step_is_its_start(tmp_path: Path) -> None:
    """Numbers at even distances, where the exporter's own rule divides by 0 and where it does not."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)

    def predictions(model: nn.Module, batch: Batch, raw: Tensor) -> list[Detections]:
        count, columns = raw.shape[0], raw.shape[-1]
        ramps = torch.cat([torch.linspace(0.5, count - 0.5, count), torch.linspace(-1, columns, columns)])
        return [Detections(raw[0, 0, 0, 0] + ramps[:, None].expand(-1, 4), ramps, torch.ones_like(ramps).long())]

    detector = build_detector("hooked", ["a"], model=nn.Identity(), features={"x": ["", 1, 3]}, predictions=predictions)
    module, image = one_image(detector, 8), torch.rand(1, 3, 8, 8)
    write_onnx(module, image, tmp_path / "model.onnx")
    found = in_onnxruntime(tmp_path / "model.onnx")(image)
    assert found.scores.tolist() == pytest.approx([0.5, *(-1 + 9 / 7 * index for index in range(8))], abs=1e-5)
    torch.testing.assert_close(found.boxes, module.detect(image).boxes)


class Unheard(nn.Module):
    """What ONNX has no word for."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.special.bessel_j0(images)


def test_what_onnx_cannot_express_is_said(tmp_path: Path) -> None:
    pytest.importorskip("onnx")

    def predictions(model: nn.Module, batch: Batch, raw: Tensor) -> list[Detections]:
        return [Detections(raw[0, 0, :3, :4], raw[0, 0, :3, 0], raw[0, 0, :3, 0].long())]

    detector = build_detector("hooked", ["a"], model=Unheard(), features={"x": ["", 1, 3]}, predictions=predictions)
    with pytest.raises(ConfigError, match=r"hooked cannot be written as ONNX: .*bessel_j0"):
        write_onnx(one_image(detector, SIZE), torch.rand(1, 3, SIZE, SIZE), tmp_path / "model.onnx")


def test_absent_packages_are_named_with_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnx, onnxruntime is needed .* pip install 'detkds\[onnx\]'"):
        require("onnx", "onnxruntime")
