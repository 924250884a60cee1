"""Reading and checking a COCO annotation file; every fault is named at once."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from detkds.errors import DataError, Faults

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


def read_coco(annotations: Path, images: Path, *, skip_degenerate: bool = False) -> CocoFile:
    """Read the file and check it against the image folder.

    Raises:
        DataError: all faults, the first :data:`MAX_FAULTS` in full.
    """
    faults = Faults(str(annotations))
    if not images.is_dir():
        faults.add(f"image folder {images} is not a folder; name the one the images lie in")
    content = _read_json(annotations, faults)
    if content is None:
        _raise(faults)
        raise AssertionError("unreachable: an unreadable file is a fault")
    categories = _categories(content["categories"], faults)
    records = _records(content["images"], images, faults)
    labels = {category_id: label for label, category_id in enumerate(sorted(categories))}
    by_id = {record.id: record for record in records}
    rows = list(_rows(content["annotations"], by_id, labels, faults, skip_degenerate))
    _raise(faults)
    ids = sorted(categories)
    return CocoFile(tuple(records), tuple(categories[id_] for id_ in ids), tuple(ids), _table(rows, by_id))


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
    except ValueError as error:
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


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_new_id(where: str, value: Any, seen: Any, faults: Faults) -> bool:
    if not _is_int(value):
        faults.add(f"{where}: id: expected a whole number, got {value!r}")
    elif value in seen:
        faults.add(f"{where}: id {value} is used twice")
    else:
        return True
    return False


def _categories(values: list[Any], faults: Faults) -> dict[int, str]:
    categories: dict[int, str] = {}
    names: set[str] = set()
    for where, value in _entries("categories", values, ("id", "name"), faults):
        name = value["name"]
        if not isinstance(name, str) or not name:
            faults.add(f"{where}: name: expected text, got {name!r}")
        elif name in names:
            faults.add(f"{where}: name {name!r} is used twice")
        elif _is_new_id(where, value["id"], categories, faults):
            categories[value["id"]] = name
            names.add(name)
    return categories


def _records(values: list[Any], folder: Path, faults: Faults) -> list[ImageRecord]:
    records: dict[int, ImageRecord] = {}
    inside = _Folder(folder)
    for where, value in _entries("images", values, ("id", "file_name", "width", "height"), faults):
        id_, name = value["id"], value["file_name"]
        if not _is_new_id(where, id_, records, faults):
            continue
        where = f"image {id_}"
        wrong = [key for key in ("width", "height") if not (_is_int(value[key]) and value[key] > 0)]
        for key in wrong:
            faults.add(f"{where}: {key}: expected a whole number of pixels > 0, got {value[key]!r}")
        fault = inside.fault(name)
        if fault:
            faults.add(f"{where}: file_name {name!r}: {fault}")
        size = (1, 1) if wrong else (value["width"], value["height"])
        records[id_] = ImageRecord(id_, str(name), *size)
    return list(records.values())


class _Folder:
    """Tells whether names point at files inside a folder, with one directory listing per sub-folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = os.path.realpath(folder)
        self.exists = folder.is_dir()
        self.listings: dict[str, dict[str, bool]] = {}

    def fault(self, name: Any) -> str | None:
        """What is wrong with a file name; None where it is fine or the folder itself is missing."""
        if not isinstance(name, str) or not name or "\0" in name:
            return "expected a path below the image folder"
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if name.startswith(("/", "\\")) or PureWindowsPath(name).drive or ".." in parts:
            return "leaves the image folder; names must be relative and without '..'"
        if not self.exists:
            return None
        parent, file = os.path.split(name)
        listing = self.listings.get(parent)
        if listing is None:
            listing = self.listings[parent] = self._list(parent)
        if file not in listing:
            return f"no such file in {self.folder}"
        if listing[file] and not self._contains(os.path.realpath(self.folder / name)):
            return "leaves the image folder through a link"
        return None

    def _list(self, parent: str) -> dict[str, bool]:
        """Files of a sub-folder and whether each needs its link resolved."""
        path = self.folder / parent
        through_link = not self._contains(os.path.realpath(path))
        try:
            with os.scandir(path) as entries:
                return {entry.name: through_link or entry.is_symlink() for entry in entries if entry.is_file()}
        except OSError:
            return {}

    def _contains(self, resolved: str) -> bool:
        return resolved == self.root or resolved.startswith(self.root.rstrip(os.sep) + os.sep)


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
    values: list[Any], images: dict[int, ImageRecord], labels: dict[int, int], faults: Faults, skip_degenerate: bool
) -> Iterator[_Row]:
    seen: set[int] = set()
    for where, value in _entries("annotations", values, ("image_id", "category_id", "bbox"), faults):
        id_ = value.get("id", -1)
        if "id" in value:
            if not _is_new_id(where, id_, seen, faults):
                continue
            seen.add(id_)
            where = f"annotation {id_}"
        before = len(faults.lines)
        image = images.get(value["image_id"]) if _is_int(value["image_id"]) else None
        if image is None:
            faults.add(f"{where}: image_id {value['image_id']!r} is no image of this file")
        label = labels.get(value["category_id"]) if _is_int(value["category_id"]) else None
        if label is None:
            known = ", ".join(map(str, sorted(labels)[:10])) + (", ..." if len(labels) > 10 else "")
            faults.add(f"{where}: category_id {value['category_id']!r} is no category of this file ({known})")
        bbox = value["bbox"]
        if not _four_numbers(bbox):
            faults.add(f"{where}: bbox: expected 4 finite numbers [x, y, width, height], got {bbox!r}")
        elif image is not None:
            problem = _box_problem(bbox, image)
            if problem and not skip_degenerate:
                faults.add(f"{where}: bbox {bbox}: {problem}; mend it, or leave such boxes out with degenerate='skip'")
        area = value.get("area")
        if area is not None and not _number(area):
            faults.add(f"{where}: area: expected a finite number, got {area!r}")
        crowd = value.get("iscrowd", 0)
        if crowd not in (0, 1):
            faults.add(f"{where}: iscrowd: expected 0 or 1, got {crowd!r}")
        if len(faults.lines) > before or image is None or label is None:
            continue
        yield _Row(
            image.id,
            id_,
            tuple(bbox),
            label,
            bbox[2] * bbox[3] if area is None else area,
            bool(crowd),
            _box_problem(bbox, image) is not None,
            value.get("segmentation"),
        )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _four_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(_number(number) for number in value)


def _box_problem(bbox: list[float], image: ImageRecord) -> str | None:
    x, y, width, height = bbox
    if width <= 0 or height <= 0:
        return "width and height must be > 0"
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        return f"lies outside its image of {image.width}x{image.height} pixels"
    return None


def _table(rows: list[_Row], images: dict[int, ImageRecord]) -> AnnotationTable:
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
