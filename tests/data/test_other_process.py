"""A process with another hash seed and other global generators makes the same files and the same batches."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from detkds.config import AugmentationConfig
from detkds.data.coco import load_coco
from detkds.data.digits import make_digits
from detkds.data.loader import evaluation_batches, training_batches


def digest(folder: Path) -> str:
    """Make a small digits set there and summarise its files and its batches."""
    paths, _ = make_digits(folder, train=8, val=1, size=64)
    dataset = load_coco(*paths)
    jitter = AugmentationConfig(flip=0.5, scale=(0.7, 1.6), crop=True, brightness=0.2, contrast=0.2, hue=0.1)
    summary = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        summary.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    for batches in (
        training_batches(dataset, size=64, batch_size=4, seed=0, epoch=0, augmentation=jitter, draws=20),
        evaluation_batches(dataset, size=64, batch_size=4),
    ):
        for batch in batches:
            summary.update(batch.images.numpy().tobytes() + repr(batch.image_ids).encode())
    return summary.hexdigest()


def test_another_process_makes_the_same(tmp_path: Path) -> None:
    script = f"""
import importlib.util, random, sys
sys.path[:0] = {sys.path!r}
spec = importlib.util.spec_from_file_location("here", {__file__!r})
here = importlib.util.module_from_spec(spec)
spec.loader.exec_module(here)
import numpy, torch
torch.set_num_threads(1)
torch.manual_seed(99); numpy.random.seed(99); random.seed(99)
print(here.digest(here.Path({str(tmp_path / "there")!r})))
"""
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == digest(tmp_path / "here")
