"""One name for all that a teacher's outputs depend on, so that no others are ever taken for them."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from detkds.data.coco import CocoDataset
from detkds.detectors.base import Detector
from detkds.training.population import Setting

FORMAT = 1
"""Of what is stored of the outputs."""


def fingerprint(setting: Setting, seed: int) -> str:
    """One name for all that a teacher's outputs on the batches of ``setting`` and ``seed`` depend on.

    Weights and buffers, structure, images and annotations, size, augmentation, draws, batch size, seed, device,
    precision, the code that makes batches and outputs, and the versions of the libraries it uses. Image files count by
    name and size alone: a changed one is found by its batch's pixels.
    """
    assert setting.teacher is not None
    digest = hashlib.blake2b(digest_size=16)
    config, device = setting.config, setting.device
    parts = {
        "format": FORMAT,
        "versions": (torch.__version__, torchvision.__version__, timm.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": (config.amp, torch.get_float32_matmul_precision()),
        "size": setting.size,
        "augmentation": setting.augmentation,
        "draws": (config.draws, config.batch_size, seed),
        "teacher": (setting.teacher, setting.teacher.info),
    }
    digest.update(repr(parts).encode())
    for name, tensor in (*setting.teacher.named_parameters(), *setting.teacher.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for file in _code(setting.teacher):
        digest.update(file.read_bytes())
    _add_data(digest, setting.train_data)
    return digest.hexdigest()


def _code(teacher: Detector) -> list[Path]:
    """The files of this package that make batches and detectors, and the one of the teacher's class."""
    package = Path(__file__).resolve().parents[1]
    own = getattr(sys.modules[type(teacher).__module__], "__file__", None)
    return [*sorted(package.glob("data/*.py")), *sorted(package.glob("detectors/*.py")), *([Path(own)] if own else [])]


def _add_data(digest: Any, data: CocoDataset) -> None:
    digest.update(repr(data.class_names).encode())
    rows = []
    for record in data.images:
        found = data.table.rows(record.id)
        digest.update(f"{record} {len(found)}".encode())
        rows += found
    for column in (data.table.bbox, data.table.labels, data.table.crowd):
        digest.update(column[rows].tobytes())
