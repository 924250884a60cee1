"""Small COCO folders written on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detkds.data.coco import CocoDataset, load_coco


@pytest.fixture
def content() -> dict[str, Any]:
    """Two images, category ids with a gap and out of order, one crowd, one box that sticks out."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "sub/b.png", "width": 20, "height": 20},
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 9.0, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [-5, 10, 20, 30], "iscrowd": 0},
            {"id": 5, "image_id": 7, "category_id": 9, "bbox": [0, 0, 40, 5], "area": 200, "iscrowd": 1},
        ],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], tuple[Path, Path]]:
    """Write content and noise images for it; returns the paths that ``load_coco`` takes."""

    def write_content(content: dict[str, Any]) -> tuple[Path, Path]:
        rng = np.random.default_rng(0)
        images = tmp_path / "images"
        for record in content["images"]:
            path = images / record["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (record["height"], record["width"], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        annotations = tmp_path / "annotations.json"
        annotations.write_text(json.dumps(content))
        return annotations, images

    return write_content


@pytest.fixture
def dataset(write: Callable[[dict[str, Any]], tuple[Path, Path]]) -> CocoDataset:
    """Eleven noise images of varied shape; class 2 is rare, one image is empty."""
    rng = np.random.default_rng(1)
    images, annotations = [], []
    for image_id in range(1, 12):
        width, height = (int(side) for side in rng.integers(40, 90, 2))
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
        for _ in range(0 if image_id == 5 else int(rng.integers(1, 4))):
            w, h = (int(side) for side in rng.integers(8, 30, 2))
            x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            category = 3 if image_id in (2, 8) else int(rng.integers(1, 3))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": [x, y, w, h],
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index, "name": name} for index, name in enumerate(("car", "van", "bus"), start=1)]
    return load_coco(*write({"images": images, "annotations": annotations, "categories": categories}))
