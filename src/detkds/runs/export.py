"""A run's student in a form that works without this package, checked on the run's own test images."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from detkds.config import DetectorConfig, RunConfig
from detkds.data.coco import CocoDataset
from detkds.data.loader import evaluation_batches
from detkds.detectors.base import Detector
from detkds.detectors.weights import load_weights
from detkds.errors import ConfigError
from detkds.exporters.home import write_home
from detkds.exporters.onnx_file import OneImage, letterbox, one_image, require, write_onnx
from detkds.exporters.parity import Parity, compare, in_onnxruntime
from detkds.runs.datasets import load_data
from detkds.runs.plan import import_plugins, make_detector

Format = Literal["home", "onnx"]
_CHECKED_IMAGES = 32


@dataclass(frozen=True)
class Exported:
    """What an export leaves: a file or folder, and for ONNX how it compares; None where that was not asked for."""

    path: Path
    parity: Parity | None = None


def export(config: RunConfig, to: Path, form: Format, weights: Path | None = None, *, check: bool = True) -> Exported:
    """Export the student with the weights of a file; without one, those that the run's search has left.

    ``home`` writes a folder that its home library loads, ``onnx`` one file. The latter is compared with the detector on
    up to 32 test images, and is written only where they agree.

    Raises:
        UserError: every fault in the data, the detector and the weights; what cannot be exported, and why; or a file
            that does not give what the detector gives.
    """
    if form == "onnx":
        require("onnx", *(["onnxruntime"] if check else []))
    import_plugins(config.plugins)
    with _test_data(config) as data:
        detector = _student(config.student, data, weights or config.folder / "student.safetensors")
        if form == "home":
            options = {**config.student.options}
            if config.student.backbone is not None:
                options["backbone"] = config.student.backbone
            write_home(detector, config.student.detector, options, config.data.size, to)
            return Exported(to)
        module = one_image(detector, config.data.size)
        images = list(islice(_squares(data, detector, config.data.size), _CHECKED_IMAGES))
    return _export_onnx(module, images, to, check)


def _export_onnx(module: OneImage, images: list[Tensor], to: Path, check: bool) -> Exported:
    with torch.no_grad():
        example = max(images, key=lambda image: len(module.detect(image).boxes))
    to.parent.mkdir(parents=True, exist_ok=True)
    scratch = to.with_name(f".{to.name}.{os.getpid()}.tmp")
    try:
        write_onnx(module, example, scratch)
        parity = None
        if check:
            with torch.no_grad():
                parity = compare(module.detect, in_onnxruntime(scratch), images)
            if not parity.passed:
                raise ConfigError(
                    f"export: the ONNX file does not give what the detector gives: {parity}; nothing was written to "
                    f"{to}. Check trained weights; --no-check writes the file all the same"
                )
        os.replace(scratch, to)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
    return Exported(to, parity)


def _squares(data: CocoDataset, detector: Detector, size: int) -> Iterator[Tensor]:
    """Each image ``(1, 3, size, size)``, filled up with the detector's mean color."""
    for batch in evaluation_batches(data, size=size, batch_size=1):
        height, width = batch.image_sizes[0].tolist()
        yield letterbox(batch.images[..., :height, :width], size, detector.mean)


@contextlib.contextmanager
def _test_data(config: RunConfig) -> Iterator[CocoDataset]:
    """The test images; embedded ones are made in a folder that is thrown away where the run has none."""
    with tempfile.TemporaryDirectory(prefix="detkds-") as scratch:
        if config.data.embedded is not None and not (config.folder / "data").exists():
            config = config.model_copy(update={"runs": Path(scratch)})
        yield load_data(config)[1]


def _student(described: DetectorConfig, data: CocoDataset, weights: Path) -> Detector:
    if not weights.exists():
        raise ConfigError(
            f"export: expected weights at {weights}, found nothing; name a file with --weights, such as one of "
            "detkds train or detkds distill, or run detkds search first"
        )
    bare = described.model_copy(update={"weights": None, "backbone_weights": None})
    detector = make_detector(bare, data.class_names, 0)
    load_weights(detector, weights)
    return detector.eval()
