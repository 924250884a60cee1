"""torchvision's published detectors: the options, class names and files that belong to their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model_weights

from detkds.errors import WeightsError, unknown_name

PREFIX = "torchvision/"
_FIRST = {"backbone": "resnet50", "frozen_norm": True, "norm_eps": 0.0}
_SECOND = {"backbone": "resnet50", "norm": "batch", "rpn_convs": 2, "box_convs": 4}
_OPTIONS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "fasterrcnn_resnet50_fpn": ("faster_rcnn", _FIRST),
    "fasterrcnn_resnet50_fpn_v2": ("faster_rcnn", _SECOND),
    "maskrcnn_resnet50_fpn": ("mask_rcnn", _FIRST),
    "maskrcnn_resnet50_fpn_v2": ("mask_rcnn", _SECOND),
    "retinanet_resnet50_fpn": ("retinanet", {**_FIRST, "head_norm": "none", "max_detections": 300}),
    "retinanet_resnet50_fpn_v2": ("retinanet", {"backbone": "resnet50", "p6_from": "c5", "max_detections": 300}),
    "fcos_resnet50_fpn": ("fcos", {"backbone": "resnet50", "frozen_norm": True, "score_threshold": 0.2}),
}
"""The detector and its options, so that it predicts what torchvision's predicts."""
_OTHERS = {
    "fasterrcnn_mobilenet_v3_large_fpn": "both maps of its body have stride 32, and levels here differ in stride",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "both maps of its body have stride 32, and levels here differ in stride",
    "ssd300_vgg16": "its levels have different channels",
    "ssdlite320_mobilenet_v3_large": "its levels have different channels",
    "keypointrcnn_resnet50_fpn": "it predicts key points",
}
"""Those that cannot be built here, and why."""


@dataclass(frozen=True)
class Preset:
    """A published detector.

    Attributes:
        detector: its registered name here; options: to build it with.
        class_names: as published; ``N/A`` and ``__background__`` stand for no class.
        address: of its weights, whose file name ends in their hash.
    """

    detector: str
    options: Mapping[str, Any]
    class_names: tuple[str, ...]
    address: str

    @property
    def source(self) -> str:
        """The file in torch's hub folder where it is there, or else the address."""
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(self.address).name
        return str(file) if file.is_file() else self.address


def preset_names() -> list[str]:
    """What can be asked for: ``torchvision/fcos_resnet50_fpn`` and so on."""
    return [PREFIX + name for name in _OPTIONS]


def find_preset(weights: str) -> Preset | None:
    """The preset of a name such as ``torchvision/fcos_resnet50_fpn``, or of a file that has a published one's name.

    Returns:
        None where ``weights`` is something else.

    Raises:
        WeightsError: torchvision has no such detector, or it cannot be built here.
    """
    if not weights.startswith(PREFIX):
        published = {Path(preset.address).name: preset for preset in map(_preset, _OPTIONS)}
        return published.get(Path(weights).name)
    name = weights.removeprefix(PREFIX)
    if name in _OTHERS:
        raise WeightsError(
            f"weights: {weights} cannot be built here: {_OTHERS[name]}; describe it with detector: hooked, "
            f"model: torchvision.models.detection:{name}"
        )
    if name not in _OPTIONS:
        raise WeightsError(f"weights: {unknown_name('preset', weights, preset_names())}")
    return _preset(name)


def _preset(name: str) -> Preset:
    detector, options = _OPTIONS[name]
    weights: Any = get_model_weights(name)["DEFAULT"].value
    names = list(weights.meta["categories"])
    if detector in ("faster_rcnn", "mask_rcnn"):
        names.remove("__background__")  # a column of its own there, apart from the classes
    else:
        names[names.index("__background__")] = "N/A"  # a column among the classes that was never trained
    return Preset(detector, options, tuple(names), weights.url)
