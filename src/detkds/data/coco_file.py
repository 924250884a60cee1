"""Reading and checking a COCO annotation file; every fault is named at once."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detkds.data.image_folder import ImageFolder
from detkds.data.images import stored_size
from detkds.errors import DataError, Faults

Degenerate = Literal["fail", "skip"]
"""What is done with boxes that have no area inside their image."""

MAX_FAULTS = 20
"""Faults written out in full; the rest are counted."""


@dataclass(frozen=True)
class ImageRecord:
    """One image of the file: its id, its path below the image folder, its size in pixels."""

    id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class AnnotationTable:
    """All annotations of a file as columns, sorted by image, M rows.

    Attributes:
        spans: first and one-past-last row of each image id; an image without annotations is absent.
        ids: ``(M,)`` annotation ids (-1 where the file has none).
        bbox: ``(M, 4)`` float64, x, y, width and height as in the file.
        boxes: ``(M, 4)`` float32, xyxy clipped to the image.
        labels: ``(M,)`` int64, contiguous from 0.
        area: ``(M,)`` float64 as in the file; width x height where the file has none.
        crowd: ``(M,)`` bool, regions to ignore.
        trainable: ``(M,)`` bool, neither a crowd nor degenerate.
        segmentations: polygons, run lengths or None, as in the file.
    """

    spans: dict[int, tuple[int, int]]
    ids: np.ndarray
    bbox: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    trainable: np.ndarray
    segmentations: list[Any]

    def rows(self, image_id: int) -> range:
        """The rows of one image."""
        return range(*self.spans.get(image_id, (0, 0)))


@dataclass(frozen=True)
class CocoFile:
    """The checked content of an annotation file."""

    images: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    table: AnnotationTable


def read_coco(annotations: Path, images: Path, *, degenerate: Degenerate = "fail") -> CocoFile:
    """Read the file and check it against the image folder.

    Raises:
        DataError: all faults, the first :data:`MAX_FAULTS` in full.
    """
    faults = Faults(str(annotations))
    return check_content(_read_json(annotations, faults), images, faults, degenerate)


def check_content(content: Any, images: Path, faults: Faults, degenerate: Degenerate = "fail") -> CocoFile:
    """Check the content of an annotation file against the image folder.

    What has one meaning alone is read as that: whole numbers as ``64.0`` or ``"64"``, a missing ``iscrowd``, sizes
    that the image files tell, backslashes in file names. Other spellings of file names that do exist, and a category
    that only groups the others, are read with a warning that says so.

    Args:
        content: lists of images, annotations and categories; None where it could not be read, which is a fault.
        faults: those so far; they name the file.

    Raises:
        DataError: all faults, the first :data:`MAX_FAULTS` in full.
    """
    if not images.is_dir():
        faults.lines.insert(0, f"{faults.where}: image folder {images} is not a folder; name the one the images lie in")
    if content is None:
        _raise(faults)
        raise AssertionError("unreachable: an unreadable file is a fault")
    notes: Counter[str] = Counter()
    categories = _categories(content["categories"], faults)
    if (group := _grouping(content)) in categories:
        notes[f"category {categories.pop(group)!r} groups the others and has no object; it is left out"] += 1
    records = _records(content["images"], images, faults, notes)
    labels = {category_id: label for label, category_id in enumerate(sorted(categories))}
    rows = list(_rows(content["annotations"], records, labels, faults, degenerate))
    _raise(faults)
    if skipped := sum(row.degenerate for row in rows):
        notes["boxes without area inside their image are left out of training"] = skipped
    for note, count in notes.items():
        told = f"{count} {note}" if count > 1 or "boxes" in note else note
        warnings.warn(f"{faults.where}: {told}", RuntimeWarning, stacklevel=2)
    ids = sorted(categories)
    images_by_id = {id_: record for id_, record in records.items() if record is not None}
    names = tuple(categories[id_] for id_ in ids)
    return CocoFile(tuple(images_by_id.values()), names, tuple(ids), _table(rows, images_by_id))


def _raise(faults: Faults) -> None:
    hidden = len(faults.lines) - MAX_FAULTS
    if hidden > 0:
        raise DataError([*faults.lines[:MAX_FAULTS], f"{faults.where}: and {hidden} more faults"])
    faults.raise_as(DataError)


def _read_json(path: Path, faults: Faults) -> dict[str, list[Any]] | None:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        faults.add(f"expected a COCO annotation file, but it cannot be read: {error.strerror or error}")
        return None
    except (ValueError, RecursionError) as error:
        faults.add(f"expected JSON, but {error}")
        return None
    if not isinstance(content, dict):
        faults.add(f"expected an object with images, annotations and categories, got a {type(content).__name__}")
        return None
    lists = {key: content.get(key) for key in ("images", "annotations", "categories")}
    for key, value in lists.items():
        if not isinstance(value, list):
            faults.add(f"{key}: expected a list, got {'nothing' if value is None else type(value).__name__}")
        elif not value and key != "annotations":
            faults.add(f"{key}: expected at least one, the list is empty")
    return lists if all(isinstance(value, list) for value in lists.values()) else None  # type: ignore[return-value]


def _entries(kind: str, values: list[Any], required: tuple[str, ...], faults: Faults) -> Iterator[tuple[str, Any]]:
    """Each well-formed entry with its name for errors."""
    for index, value in enumerate(values):
        where = f"{kind}[{index}]"
        if not isinstance(value, dict):
            faults.add(f"{where}: expected an object, got a {type(value).__name__}")
            continue
        missing = [key for key in required if key not in value]
        if missing:
            faults.add(f"{where}: missing {', '.join(missing)}")
            continue
        yield where, value


def whole(value: Any) -> int | None:
    """A whole number of 64 bits that is written as ``64``, ``64.0`` or ``"64"``; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,18}(\.0*)?\s*", value):
        value = float(value) if "." in value else int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63 else None


def _new_id(where: str, value: Any, seen: Any, faults: Faults) -> int | None:
    id_ = whole(value)
    if id_ is None:
        faults.add(f"{where}: id: expected a whole number, got {value!r}")
    elif id_ in seen:
        faults.add(f"{where}: id {id_} is used twice")
        return None
    return id_


def _categories(values: list[Any], faults: Faults) -> dict[int, str]:
    categories: dict[int, str] = {}
    names: set[str] = set()
    for where, value in _entries("categories", values, ("id", "name"), faults):
        name = value["name"]
        if not isinstance(name, str) or not name:
            faults.add(f"{where}: name: expected text, got {name!r}")
        elif name in names:
            faults.add(f"{where}: name {name!r} is used twice")
        elif (id_ := _new_id(where, value["id"], categories, faults)) is not None:
            categories[id_] = name
            names.add(name)
    return categories


def _grouping(content: Any) -> int | None:
    """The id of a category without objects that is the supercategory of all others, as Roboflow writes it."""
    categories = [value for value in content["categories"] if isinstance(value, dict)]
    parents = {str(value.get("supercategory")): value for value in categories}
    used = {whole(value.get("category_id")) for value in content["annotations"] if isinstance(value, dict)}
    for group in categories:
        others = [value for value in categories if value is not group]
        if (
            others
            and group.get("name") in parents
            and all(value.get("supercategory") == group["name"] for value in others)
            and whole(group.get("id")) not in used
        ):
            return whole(group.get("id"))
    return None


def _records(values: list[Any], folder: Path, faults: Faults, notes: Counter[str]) -> dict[int, ImageRecord | None]:
    """The images by id; None where something is wrong with one, so that its annotations say nothing more."""
    records: dict[int, ImageRecord | None] = {}
    inside = ImageFolder(folder)
    for where, value in _entries("images", values, ("id", "file_name"), faults):
        id_ = _new_id(where, value["id"], records, faults)
        if id_ is None:
            continue
        where, before = f"image {id_}", len(faults.lines)
        name = inside.named(where, value["file_name"], faults, notes)
        size = {key: whole(value[key]) for key in ("width", "height") if value.get(key) is not None}
        for key, pixels in size.items():
            if pixels is None or pixels <= 0:
                faults.add(f"{where}: {key}: expected a whole number of pixels > 0, got {value[key]!r}")
        records[id_] = None
        if len(faults.lines) > before:
            continue
        if len(size) < 2:
            try:
                size["width"], size["height"] = stored_size(folder / name)
            except (OSError, SyntaxError, ValueError) as error:
                faults.add(f"{where}: has no width and height, and {name} does not tell them: {error}")
                continue
        records[id_] = ImageRecord(id_, name, size["width"] or 0, size["height"] or 0)
    return records


@dataclass(frozen=True)
class _Row:
    image_id: int
    id: int
    bbox: tuple[float, ...]
    label: int
    area: float
    crowd: bool
    degenerate: bool
    segmentation: Any


def _rows(
    values: list[Any],
    images: Mapping[int, ImageRecord | None],
    labels: Mapping[int, int],
    faults: Faults,
    degenerate: Degenerate,
) -> Iterator[_Row]:
    seen: set[int] = set()
    for where, value in _entries("annotations", values, ("image_id", "category_id", "bbox"), faults):
        id_ = -1
        if value.get("id") is not None:
            new = _new_id(where, value["id"], seen, faults)
            if new is None:
                continue
            id_ = new
            seen.add(id_)
            where = f"annotation {id_}"
        before = len(faults.lines)
        image_id, label = whole(value["image_id"]), labels.get(whole(value["category_id"]) or 0)
        if whole(value["category_id"]) is None:
            label = None
        image = None if image_id is None else images.get(image_id)
        if image_id not in images:
            faults.add(f"{where}: image_id {value['image_id']!r} is no image of this file")
        if label is None:
            known = ", ".join(map(str, sorted(labels)[:10])) + (", ..." if len(labels) > 10 else "")
            faults.add(f"{where}: category_id {value['category_id']!r} is no category of this file ({known})")
        bbox = _four_numbers(value["bbox"])
        problem = None
        if bbox is None:
            faults.add(f"{where}: bbox: expected 4 finite numbers [x, y, width, height], got {value['bbox']!r}")
        elif image is not None:
            problem = _box_problem(bbox, image)
            if problem and degenerate == "fail":
                faults.add(
                    f"{where}: bbox {value['bbox']}: {problem}; fix it, or leave such boxes out with "
                    f"data.degenerate: skip"
                )
        area = None if value.get("area") is None else _number(value["area"])
        if area is None and value.get("area") is not None:
            faults.add(f"{where}: area: expected a finite number, got {value['area']!r}")
        crowd = whole(int(value["iscrowd"]) if isinstance(value.get("iscrowd"), bool) else value.get("iscrowd") or 0)
        if crowd not in (0, 1):
            faults.add(f"{where}: iscrowd: expected 0 or 1, got {value['iscrowd']!r}")
        if len(faults.lines) > before or image is None or label is None or bbox is None:
            continue
        area = bbox[2] * bbox[3] if area is None else area
        yield _Row(image.id, id_, bbox, label, area, bool(crowd), problem is not None, value.get("segmentation"))


def _number(value: Any) -> float | None:
    """A finite number, or the text of one."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _four_numbers(value: Any) -> tuple[float, ...] | None:
    numbers = [_number(number) for number in value] if isinstance(value, list) and len(value) == 4 else [None]
    return None if None in numbers else tuple(numbers)  # type: ignore[arg-type]


def _box_problem(bbox: Sequence[float], image: ImageRecord) -> str | None:
    x, y, width, height = bbox
    if width <= 0 or height <= 0:
        return "width and height must be > 0"
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        return f"lies outside its image of {image.width}x{image.height} pixels"
    return None


def _table(rows: list[_Row], images: Mapping[int, ImageRecord]) -> AnnotationTable:
    order = {image_id: position for position, image_id in enumerate(images)}
    rows.sort(key=lambda row: order[row.image_id])
    spans: dict[int, tuple[int, int]] = {}
    for index, row in enumerate(rows):
        spans[row.image_id] = (spans.get(row.image_id, (index, index))[0], index + 1)
    bbox = np.array([row.bbox for row in rows], dtype=np.float64).reshape(-1, 4)
    limits = np.array([(images[row.image_id].width, images[row.image_id].height) for row in rows], dtype=np.float64)
    limits = np.tile(limits.reshape(-1, 2), 2)
    boxes = np.clip(np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1), 0, limits)
    crowd = np.array([row.crowd for row in rows], dtype=bool)
    degenerate = np.array([row.degenerate for row in rows], dtype=bool)
    return AnnotationTable(
        spans=spans,
        ids=np.array([row.id for row in rows], dtype=np.int64),
        bbox=bbox,
        boxes=boxes.astype(np.float32),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        area=np.array([row.area for row in rows], dtype=np.float64),
        crowd=crowd,
        trainable=~crowd & ~degenerate,
        segmentations=[row.segmentation for row in rows],
    )
