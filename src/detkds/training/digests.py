"""Digests of content: of images with their annotations, of detectors, and of all that a teacher's outputs depend on."""

from __future__ import annotations

import hashlib
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

from detkds.data.coco import CocoDataset
from detkds.detectors.base import Detector
from detkds.training.setup import TrainingSetup

FORMAT = 1
"""Of what is stored of the outputs."""

MOST_BYTES = 10**9
"""Image files of a data set are read whole up to so many bytes; those of larger sets count by name and size."""


def digest_of(*parts: object) -> str:
    """A digest of values whose ``repr`` says all about them."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def data_digest(data: CocoDataset) -> str:
    """Of classes, images and annotations, and of the image files: of their bytes where these are not too many."""
    digest = hashlib.blake2b(digest_size=16)
    _add_annotations(digest, data)
    files = [data.folder / record.file_name for record in data.images]
    sizes = [file.stat().st_size if file.is_file() else -1 for file in files]
    digest.update(repr(sizes).encode())
    if sum(sizes) <= MOST_BYTES:
        for file in files:
            if file.is_file():
                digest.update(file_digest(file).encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """Of a file's bytes; read once as long as size and time of modification stay."""
    status = path.stat()
    return _file_digest(path.absolute(), status.st_size, status.st_mtime_ns)


@cache
def _file_digest(path: Path, size: int, modified: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def detector_digest(detector: Detector) -> str:
    """Of a detector's structure, and of its weights and buffers."""
    structure = re.sub("0x[0-9a-f]+", "", repr((detector, detector.info, detector.class_names)))  # no addresses
    digest = hashlib.blake2b(structure.encode(), digest_size=16)
    for name, tensor in (*detector.named_parameters(), *detector.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(setup: TrainingSetup, seed: int) -> str:
    """One name for all that a teacher's outputs on the batches of ``setup`` and ``seed`` depend on.

    Weights and buffers, structure, images and annotations, size, augmentation, draws, batch size, seed, device,
    precision, the code that makes batches and outputs, and the versions of the libraries it uses. Image files count by
    name and size alone: a changed one is found by its batch's pixels.
    """
    assert setup.teacher is not None
    config, device = setup.config, setup.device
    parts = {
        "format": FORMAT,
        "versions": (torch.__version__, torchvision.__version__, timm.__version__),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": (config.amp, torch.get_float32_matmul_precision()),
        "size": setup.size,
        "augmentation": setup.augmentation,
        "draws": (config.draws, config.batch_size, seed),
        "teacher": detector_digest(setup.teacher),
    }
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=16)
    for file in _code(setup.teacher):
        digest.update(file.read_bytes())
    _add_annotations(digest, setup.train_data)
    return digest.hexdigest()


def _code(teacher: Detector) -> list[Path]:
    """The files of this package that make batches and detectors, and the one of the teacher's class."""
    package = Path(__file__).resolve().parents[1]
    own = getattr(sys.modules[type(teacher).__module__], "__file__", None)
    return [*sorted(package.glob("data/*.py")), *sorted(package.glob("detectors/*.py")), *([Path(own)] if own else [])]


def _add_annotations(digest: Any, data: CocoDataset) -> None:
    digest.update(repr((data.class_names, data.category_ids)).encode())
    rows: list[int] = []
    for record in data.images:
        own = data.table.rows(record.id)
        digest.update(f"{record} {len(own)}".encode())
        rows += own
    for column in (data.table.bbox, data.table.labels, data.table.crowd, data.table.area):
        digest.update(column[rows].tobytes())
    digest.update(repr([data.table.segmentations[row] for row in rows]).encode())
