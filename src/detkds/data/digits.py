"""The embedded data set: handwritten digits pasted on photographs, made on the spot from scikit-learn's samples."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_digits, load_sample_images

from detkds.data.augment import stable_seed
from detkds.data.masks import run_lengths
from detkds.errors import DataError
from detkds.files import PART

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RECIPE = 1
"""Raised whenever the same arguments would give other images."""

_TRAIN_SHARE = 0.7
_INK_LEVEL = 1 / 3
_MAX_OBJECTS = 6


class CocoPaths(NamedTuple):
    """Where a data set lies: ``load_coco(*paths)`` reads it."""

    annotations: Path
    images: Path


def make_digits(
    folder: Path | str, *, train: int = 600, val: int = 200, size: int = 128, seed: int = 0, num_classes: int = 10
) -> tuple[CocoPaths, CocoPaths]:
    """Write the digits data set in the COCO layout and return its training and validation paths.

    Images of ``size`` x ``size`` pixels hold 0 to 6 digits, a sixth to two fifths of the side tall, turned by up
    to 15 degrees, lighter or darker than a blurred or sharp crop of a photograph, among stray strokes. Each has its
    box, its mask and its class. Validation uses digits and parts of the photographs that training never shows. The
    same arguments give the same pixels; a folder that already holds them is used as it is.

    Raises:
        DataError: an argument is out of range, or the folder holds something else.
    """
    if not (train >= 1 and val >= 1 and size >= 32 and 1 <= num_classes <= 10):
        raise DataError(
            f"digits: expected train and val >= 1, size >= 32 and num_classes from 1 to 10, "
            f"got train={train}, val={val}, size={size}, num_classes={num_classes}"
        )
    folder = Path(folder)
    paths = tuple(CocoPaths(folder / f"{part}.json", folder / part) for part in ("train", "val"))
    info = {
        "description": "digits: handwritten digits on photographs (scikit-learn samples)",
        "recipe": RECIPE,
        "arguments": {"train": train, "val": val, "size": size, "seed": seed, "num_classes": num_classes},
    }
    if not _holds(folder, info):
        _write_set(folder, {"train": train, "val": val}, size, seed, num_classes, info)
    return paths[0], paths[1]


def _holds(folder: Path, info: dict[str, Any]) -> bool:
    """Whether the folder holds exactly this set; False where it is free to be written."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        written = [json.loads((folder / f"{part}.json").read_text())["info"] for part in ("train", "val")]
    except (OSError, ValueError, KeyError, TypeError):
        written = []
    if written == [info, info]:
        return True
    raise DataError(f"digits: {folder} already holds something else; name an empty or a new folder")


def _write_set(
    folder: Path, counts: dict[str, int], size: int, seed: int, num_classes: int, info: dict[str, Any]
) -> None:
    """Write everything beside the folder, then move it into place in one step."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix=PART, dir=folder.parent))
    try:
        draft.chmod(0o755)
        for part, count in counts.items():
            _write_part(draft, part, count, size, seed, num_classes, info)
        try:
            os.replace(draft, folder)
        except OSError:
            if not _holds(folder, info):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_part(
    folder: Path, part: str, count: int, size: int, seed: int, num_classes: int, info: dict[str, Any]
) -> None:
    (folder / part).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = compose(part == "train", size, num_classes, np.random.default_rng(stable_seed(part, seed, index)))
        name = f"{part}_{index:05d}.png"
        Image.fromarray(scene.image).save(folder / part / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": label + 1,
                    "bbox": _tight_box(mask),
                    "area": float(mask.sum()),
                    "segmentation": run_lengths(mask),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(NAMES[:num_classes])]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (folder / f"{part}.json").write_text(json.dumps(content))


@dataclass(frozen=True)
class Scene:
    """One composed image ``(size, size, 3)`` uint8 with the label and the visible bool mask of each digit."""

    image: np.ndarray
    labels: tuple[int, ...]
    masks: tuple[np.ndarray, ...]


def compose(train: bool, size: int, num_classes: int, rng: np.random.Generator) -> Scene:
    """Compose one image from the training or the validation samples; about one in twelve is empty."""
    canvas = _background(train, size, rng)
    for _ in range(int(rng.integers(0, 4))):
        _paint(canvas, _stroke(size, rng), (0, 0), rng)
    samples, sample_labels = _samples(train)
    allowed = np.flatnonzero(sample_labels < num_classes)
    wanted = 0 if rng.random() < 1 / 12 else int(rng.integers(1, _MAX_OBJECTS + 1))
    labels: list[int] = []
    masks: list[np.ndarray] = []
    taken = np.zeros((size, size), dtype=bool)
    for _ in range(wanted):
        sample = int(rng.choice(allowed))
        ink = _digit(samples[sample], size * float(rng.uniform(0.18, 0.42)), float(rng.uniform(-15, 15)))
        place = _free_place(taken, ink.shape, rng)
        if place is None:
            continue
        top, left = place
        mask = np.zeros((size, size), dtype=bool)
        mask[top : top + ink.shape[0], left : left + ink.shape[1]] = ink > _INK_LEVEL
        _paint(canvas, ink, place, rng)
        taken[top : top + ink.shape[0], left : left + ink.shape[1]] = True
        labels.append(int(sample_labels[sample]))
        masks.append(mask)
    canvas += rng.normal(0, rng.uniform(2, 10), canvas.shape)
    return Scene(np.clip(np.rint(canvas), 0, 255).astype(np.uint8), tuple(labels), tuple(masks))


@lru_cache(maxsize=2)
def _samples(train: bool) -> tuple[np.ndarray, np.ndarray]:
    """Digits of one part, ``(M, 8, 8)`` ink in [0, 1], and their labels; the parts never change with a seed."""
    digits: Any = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    cut = round(_TRAIN_SHARE * len(order))
    part = np.sort(order[:cut] if train else order[cut:])
    return digits.images[part] / 16.0, digits.target[part]


@lru_cache(maxsize=2)
def _photographs(train: bool) -> tuple[np.ndarray, ...]:
    """The left of each sample photograph for training, the rest for validation, ``(3, H, W)`` float32 in [0, 255]."""
    photographs: Any = load_sample_images().images
    parts = []
    for photograph in photographs:
        cut = round(_TRAIN_SHARE * photograph.shape[1])
        part = photograph[:, :cut] if train else photograph[:, cut:]
        parts.append(np.ascontiguousarray(part.transpose(2, 0, 1), dtype=np.float32))
    return tuple(parts)


def _background(train: bool, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random window of a photograph, resized, sometimes mirrored, dimmed towards a random tint; float32."""
    photographs = _photographs(train)
    photograph = photographs[int(rng.integers(len(photographs)))]
    side = int(rng.integers(64, min(photograph.shape[1:]) + 1))
    top, left = (int(rng.integers(0, limit - side + 1)) for limit in photograph.shape[1:])
    window = torch.from_numpy(photograph[:, top : top + side, left : left + side].copy())[None]
    resized = functional.interpolate(window, (size, size), mode="bilinear", antialias=True, align_corners=False)
    canvas = resized[0].numpy().transpose(1, 2, 0).copy()
    if rng.random() < 0.5:
        canvas = canvas[:, ::-1].copy()
    share = rng.uniform(0.2, 0.7)
    return (canvas * share + rng.uniform(0, 255, 3) * (1 - share)).astype(np.float32)


def _digit(sample: np.ndarray, height_px: float, degrees: float) -> np.ndarray:
    """An 8 x 8 digit enlarged to about ``height_px`` and turned, as ink in [0, 1], cut to where there is any."""
    scale = height_px / 8.0
    side = int(np.ceil(height_px * 1.5))
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    center = np.full(2, (side - 1) / 2)
    offset: Any = np.full(2, 3.5) - turn @ center
    ink = ndimage.affine_transform(sample, turn, offset, (side, side), order=3)
    ink = np.clip((ink - 0.2) / 0.45, 0, 1)
    visible = ink > 0
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _stroke(size: int, rng: np.random.Generator) -> np.ndarray:
    """A stray straight stroke as ``(size, size)`` ink, clutter that is no digit."""
    center, angle = rng.uniform(0, size, 2), rng.uniform(0, np.pi)
    length, width = size * rng.uniform(0.05, 0.3), size * rng.uniform(0.008, 0.025)
    rows, columns = np.mgrid[:size, :size] - center[:, None, None]
    along = np.abs(rows * np.cos(angle) + columns * np.sin(angle)) - length / 2
    across = np.abs(columns * np.cos(angle) - rows * np.sin(angle)) - width
    return np.clip(1 - np.maximum(along, across), 0, 1)


def _paint(canvas: np.ndarray, ink: np.ndarray, place: tuple[int, int], rng: np.random.Generator) -> None:
    """Blend ink into the canvas in a color lighter or darker than what lies below, by a random contrast."""
    window = canvas[place[0] : place[0] + ink.shape[0], place[1] : place[1] + ink.shape[1]]
    below = window.mean((0, 1))
    lighter = rng.random() < 1 - below.mean() / 255
    extreme = np.full(3, 255.0 if lighter else 0.0)
    color = below + (extreme - below) * rng.uniform(0.7, 1.0) + rng.normal(0, 20, 3)
    window += ink[..., None] * (np.clip(color, 0, 255) - window)


def _free_place(taken: np.ndarray, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int] | None:
    """A random top left corner where the digit overlaps no other; None where 10 tries find none."""
    for _ in range(10):
        top, left = (int(rng.integers(0, limit - side + 1)) for limit, side in zip(taken.shape, shape, strict=True))
        if not taken[top : top + shape[0], left : left + shape[1]].any():
            return top, left
    return None


def _tight_box(mask: np.ndarray) -> list[float]:
    """``[x, y, width, height]`` of the pixels that are set."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(v) for v in (columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)]
