"""Data sets in YOLO's layout: a ``data.yaml``, folders of images, and a text file of objects for each image."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from detkds.data.images import stored_size
from detkds.errors import Faults, unknown_name

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SPLITS = ("train", "val", "test")


def read_yolo(path: Path, splits: Sequence[str], faults: Faults) -> tuple[dict[str, list[Any]] | None, Path]:
    """One split as the content of a COCO annotation file, and the folder that its file names are relative to.

    Lines of label files are ``class cx cy width height`` or ``class x1 y1 x2 y2 ...`` (a polygon), in fractions of the
    image. An image without a label file has no objects. Images are numbered from 1 in the order of their paths.

    Args:
        path: a ``data.yaml`` with ``names``, ``train``, ``val``, ``test`` and, where it is not the folder of that file,
            ``path``.
        splits: the first of these that it has is read.
        faults: collects what is wrong; the content is then None where nothing can be read.
    """
    described = _described(path, faults)
    names = _names(described.get("names"), faults)
    split = next((name for name in splits if described.get(name)), None)
    if split is None:
        faults.add(unknown_name("split", splits[0], [name for name in SPLITS if described.get(name)]))
        return None, path.parent
    root = path.parent / str(described.get("path") or "")
    images = sorted(_images(root, described[split], faults))
    if not images:
        faults.add(f"{split}: expected images ({', '.join(SUFFIXES)}), found none at {described[split]}")
    if not names or not images:
        return None, root
    folder = Path(os.path.commonpath([image.parent for image in images]))
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        try:
            width, height = stored_size(image)
        except (OSError, SyntaxError, ValueError) as error:
            faults.add(f"{image}: cannot be read as an image: {error}")
            continue
        name = image.relative_to(folder).as_posix()
        records.append({"id": number, "file_name": name, "width": width, "height": height})
        for label, box, polygon in _objects(_label_file(image), len(names), faults):
            x1, y1, x2, y2 = (value * side for value, side in zip(box, (width, height) * 2, strict=True))
            scaled = [value * (width, height)[place % 2] for place, value in enumerate(polygon)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "segmentation": [scaled] if scaled else None,
                }
            )
    categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
    return {"images": records, "annotations": annotations, "categories": categories}, folder


def _described(path: Path, faults: Faults) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        faults.add(f"cannot be read as YAML: {' '.join(str(error).split())}")
        return {}
    if not isinstance(content, dict):
        faults.add(f"expected a mapping with names and {', '.join(SPLITS)}, got a {type(content).__name__}")
        return {}
    return content


def _names(given: Any, faults: Faults) -> list[str]:
    """Class names from a list or from ``{number: name}``."""
    if isinstance(given, dict) and sorted(map(str, given), key=lambda key: (len(key), key)) == [
        str(number) for number in range(len(given))
    ]:
        given = [given.get(number, given.get(str(number))) for number in range(len(given))]
    if not isinstance(given, list) or not given or not all(isinstance(name, (str, int)) for name in given):
        faults.add(f"names: expected a list of names, or names by number from 0, got {given!r}")
        return []
    return [str(name) for name in given]


def _images(root: Path, given: Any, faults: Faults) -> Iterator[Path]:
    """Image files of folders and of text files that list them."""
    for entry in given if isinstance(given, list) else [given]:
        place = root / str(entry)
        if not place.exists() and str(entry).startswith("../"):
            place = root / str(entry)[3:]  # as Roboflow writes it
        if place.is_dir():
            yield from (path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        elif place.is_file():
            lines = place.read_text(encoding="utf-8-sig").splitlines()
            yield from (place.parent / line.strip() for line in lines if line.strip())
        else:
            faults.add(f"expected a folder of images, or a file that lists them, found nothing at {place}")


def _label_file(image: Path) -> Path:
    """The text file of an image: its last folder ``images`` is ``labels`` there."""
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _objects(path: Path, classes: int, faults: Faults) -> Iterator[tuple[int, list[float], list[float]]]:
    """Label, box x1, y1, x2, y2 and polygon (empty where there is none) of each line, in fractions."""
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            label, *values = map(float, words)
        except ValueError:
            label, values = -1.0, []
        polygon = len(values) >= 6 and len(values) % 2 == 0
        if not (label.is_integer() and all(map(math.isfinite, values)) and (len(values) == 4 or polygon)):
            faults.add(f"{path}:{number}: expected a class and 4 numbers, or a class and a polygon, got {line[:60]!r}")
        elif not 0 <= label < classes:
            faults.add(f"{path}:{number}: expected a class from 0 to {classes - 1}, got {int(label)}")
        elif polygon:
            xs, ys = values[::2], values[1::2]
            yield int(label), [min(xs), min(ys), max(xs), max(ys)], values
        else:
            x, y, width, height = values
            yield int(label), [x - width / 2, y - height / 2, x + width / 2, y + height / 2], []


def is_yolo(path: Path) -> bool:
    """Whether a path is meant as a ``data.yaml``."""
    return path.suffix.lower() in (".yaml", ".yml")
