"""Detectors as configurations describe them, with weights from where they live."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detkds.config import DetectorConfig
from detkds.detectors import build_detector
from detkds.detectors.base import Detector
from detkds.detectors.presets import find_preset
from detkds.detectors.transformers.families import FAMILIES
from detkds.detectors.weights import load_weights, stored_class_names
from detkds.errors import ConfigError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def configured_detector(config: DetectorConfig, class_names: Sequence[str]) -> Detector:
    """Build a detector as its configuration says, and load its weights.

    Weights are a file or URL; ``torchvision/NAME``, which brings the options of the published detector; or, for a
    detector of the transformers library, a ``save_pretrained`` folder or a name on its hub. Options that the
    configuration names go before those that weights bring.

    Args:
        class_names: what the detector is for, unless the configuration names its classes; those with synonyms are
            called by them.

    Raises:
        UserError: unknown detector, backbone or option, or weights that do not fit; all faults at once.
    """
    given: dict[str, Any] = dict(config.options)
    for name in ("backbone", "backbone_weights"):
        if (value := getattr(config, name)) is not None:
            given[name] = value
    source, brought = _source(config)
    names = [config.synonyms.get(name, name) for name in config.classes or class_names]
    try:
        detector = build_detector(config.detector, names, **{**brought, **given})
    except TypeError as error:
        raise ConfigError(f"detector {config.detector!r}: options: {error}") from None
    if source is not None:
        load_weights(detector, source, partial=config.partial, trust=config.trust)
    return detector


def known_class_names(config: DetectorConfig) -> tuple[str, ...] | None:
    """The names of the classes that a configuration's weights are for; None where nothing says them."""
    if config.classes is not None or config.weights is None:
        return config.classes
    if (folder := _pretrained(config)) is not None:
        return _labels(Path(folder) / "config.json")
    preset = find_preset(config.weights)
    return stored_class_names(config.weights) if preset is None else preset.class_names


def _source(config: DetectorConfig) -> tuple[str | None, dict[str, Any]]:
    """The file or address that is still to be loaded, and the options that weights bring."""
    if config.weights is None:
        return None, {}
    if (folder := _pretrained(config)) is not None:
        return None, {"pretrained": folder, "new_head": config.partial}
    preset = find_preset(config.weights)
    if preset is None:
        return config.weights, {}
    if preset.detector != config.detector:
        raise ConfigError(f"weights: {config.weights} is for detector: {preset.detector}, got {config.detector}")
    return preset.source, dict(preset.options)


def _pretrained(config: DetectorConfig) -> str | None:
    """The folder or hub name of a model of the transformers library; None where the weights are something else."""
    if config.weights is None or config.detector not in FAMILIES:
        return None
    path = Path(config.weights)
    if path.is_dir():
        return config.weights
    if path.is_file():
        # Its names on disk are not those in memory, which the library alone can tell.
        stored = path.with_name("config.json")
        return str(path.parent) if path.suffix == ".safetensors" and "model_type" in _read(stored) else None
    return config.weights if _HUB_NAME.fullmatch(config.weights) else None


def _labels(path: Path) -> tuple[str, ...] | None:
    labels = _read(path).get("id2label")
    if not isinstance(labels, Mapping) or not all(str(key).isdecimal() for key in labels):
        return None
    return tuple(str(labels[key]) for key in sorted(labels, key=int)) or None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}
