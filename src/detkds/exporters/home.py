"""A detector as a folder that its home library loads: weights, settings, and the few lines that build it."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg

from detkds.detectors import narrow
from detkds.detectors.backbones import ALIASES
from detkds.detectors.base import Detector
from detkds.detectors.weights import save_weights
from detkds.errors import ConfigError
from detkds.exporters import standalone
from detkds.registry import DETECTORS

AT_HOME = ("faster_rcnn", "fcos", "mask_rcnn", "retinanet")
"""Detectors that torchvision has a model of."""
_LEFT_OUT = ("class_names", "backbone", "backbone_weights", "backbone_options", "mean", "std")


def write_home(detector: Detector, name: str, options: Mapping[str, Any], size: int, folder: Path) -> None:
    """Write a folder from which the detector loads without this package.

    A detector of the transformers library writes what ``from_pretrained`` reads. Others are written as
    ``model.safetensors``, ``model.json`` and ``load.py``, which builds torchvision's model on a timm body.

    Args:
        name: as registered; options: what it was built with, ``backbone`` among them.
        size: pixels of the longer side of its images.

    Raises:
        ConfigError: the detector has no home.
    """
    save_pretrained: Any = getattr(detector, "save_pretrained", None)
    if save_pretrained is not None:
        folder.mkdir(parents=True, exist_ok=True)
        save_pretrained(folder)
        return
    if name == "hooked":
        save_weights(detector, folder / "model.safetensors")
        return
    if name not in AT_HOME:
        raise ConfigError(
            f"export: {name} has no home library: torchvision and timm have its parts, and no model of it "
            f"(they have {', '.join(AT_HOME)}); export it with --format onnx, or use its weights with this package"
        )
    settings = home_settings(detector, name, options, size)
    save_weights(detector, folder / "model.safetensors")
    (folder / "model.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(standalone.__file__, folder / "load.py")
    if "narrow" in settings["body"]:
        shutil.copyfile(narrow.__file__, folder / "narrow.py")


def home_settings(detector: Detector, name: str, options: Mapping[str, Any], size: int) -> dict[str, Any]:
    """What ``load.py`` builds the detector from, as plain data."""
    parameters = inspect.signature(DETECTORS[name]).parameters.values()
    given = {
        parameter.name: options.get(parameter.name, parameter.default)
        for parameter in parameters
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    labels = ["__background__"] if detector.info.layout.activation == "softmax" else []
    return {
        "detector": name,
        "classes": [*labels, *detector.class_names],
        "size": size,
        "mean": [round(value, 6) for value in detector.mean.flatten().tolist()],
        "std": [round(value, 6) for value in detector.std.flatten().tolist()],
        "body": _body(given["backbone"], given["backbone_options"] or {}),
        "options": {key: value for key, value in given.items() if key not in _LEFT_OUT},
    }


def _body(backbone: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if match := re.fullmatch(r"narrow(\d+)", backbone):
        return {"narrow": int(match[1])}
    model = ALIASES.get(backbone, backbone)
    fixed = bool(getattr(get_pretrained_cfg(model), "fixed_input_size", False))
    return {"timm": model, "fixed_size": fixed, "options": dict(options)}
