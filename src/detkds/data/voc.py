"""Data sets in the layout of Pascal VOC: an XML file for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from detkds.errors import Faults


def read_voc(
    path: Path, images: Path | None, splits: Sequence[str], faults: Faults
) -> tuple[dict[str, list[Any]] | None, Path]:
    """The images of a split as the content of a COCO annotation file, and the folder they lie in.

    Boxes are pixels counted from 1, the last one included (Everingham et al., the VOC development kit), so that
    ``xmin 1, xmax 10`` is ``[0, 10]``. Objects marked difficult are regions to ignore. Classes are all names in the
    folder, sorted. Images are numbered from 1 in the order of their files.

    Args:
        path: the folder ``Annotations``, or the one that it is in.
        images: where the images lie; None means ``JPEGImages`` beside it.
        splits: the first of these with a file ``ImageSets/Main/SPLIT.txt`` is read; where none has, all images.
        faults: collects what is wrong; the content is then None where nothing can be read.
    """
    folder = path / "Annotations" if (path / "Annotations").is_dir() else path
    images = images or folder.parent / "JPEGImages"
    files = sorted(folder.glob("*.xml"))
    if not files:
        faults.add(f"expected XML files in {folder}, found none")
        return None, images
    stems = {file.stem for file in files}
    lists = (folder.parent / "ImageSets" / "Main" / f"{split}.txt" for split in splits)
    listed = next((file for file in lists if file.is_file()), None)
    if listed is not None:
        lines = listed.read_text(encoding="utf-8").splitlines()
        chosen = {line.split()[0] for line in lines if line.strip()}
        if absent := sorted(chosen - stems):
            faults.add(f"{listed}: {len(absent)} of its images have no XML file, the first is {absent[0]}")
        stems &= chosen
    trees = {file: tree for file in files if (tree := _tree(file, faults)) is not None}
    names = sorted({name for tree in trees.values() for name in _names(tree)})
    ids = {name: number for number, name in enumerate(names, start=1)}
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for file, tree in trees.items():
        if file.stem not in stems:
            continue
        number = len(records) + 1
        size = {side: tree.findtext(f"size/{side}") for side in ("width", "height")}
        known = {side: text for side, text in size.items() if text not in (None, "0")}
        records.append({"id": number, "file_name": tree.findtext("filename") or f"{file.stem}.jpg", **known})
        for name, box, difficult in _objects(file, tree, faults):
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": ids[name], "bbox": box}
            annotations.append({**annotation, "iscrowd": int(difficult)})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    return {"images": records, "annotations": annotations, "categories": categories}, images


def _tree(file: Path, faults: Faults) -> ElementTree.Element | None:
    try:
        text = file.read_text(encoding="utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ElementTree.ParseError("entities are not read")
        return ElementTree.fromstring(text)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        faults.add(f"{file}: cannot be read as XML: {error}")
        return None


def _names(tree: ElementTree.Element) -> Iterator[str]:
    return (name for entry in tree.iter("object") if (name := (entry.findtext("name") or "").strip()))


def _objects(file: Path, tree: ElementTree.Element, faults: Faults) -> Iterator[tuple[str, list[float], bool]]:
    """Name, box x, y, width and height from 0, and whether it is difficult."""
    for number, entry in enumerate(tree.iter("object")):
        name = (entry.findtext("name") or "").strip()
        corners = [entry.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = (float(corner or "none") for corner in corners)
        except ValueError:
            faults.add(f"{file}: object {number}: expected a bndbox of xmin, ymin, xmax, ymax, got {corners}")
            continue
        if not name:
            faults.add(f"{file}: object {number}: expected a name, got none")
            continue
        yield name, [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1], (entry.findtext("difficult") or "0").strip() == "1"
