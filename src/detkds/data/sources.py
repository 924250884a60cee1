"""Data sets from where configurations say: COCO files, YOLO's ``data.yaml`` or VOC folders, one or several at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detkds.config import SplitConfig
from detkds.data.coco import CocoDataset, dataset_of, load_coco
from detkds.data.coco_file import Degenerate, check_content
from detkds.data.voc import read_voc
from detkds.data.yolo import is_yolo, read_yolo
from detkds.errors import ConfigError, DataError, Faults, UserError

_SPLITS = {"train": ("train", "trainval"), "test": ("test", "val")}
"""What the parts of a run are called in data sets, in the order they are looked for."""


def load_split(
    described: SplitConfig | Sequence[SplitConfig],
    role: str,
    *,
    degenerate: Degenerate = "fail",
    class_names: Sequence[str] | None = None,
) -> CocoDataset:
    """Read and check one data set, or several as one.

    What a path is says how it is read: a ``.json`` file as COCO's, a ``.yaml`` file as YOLO's, a folder of XML files as
    VOC's.
    Several sets have the classes of the first, compared by name; images are numbered from 1 through all of them.

    Args:
        role: ``train`` or ``test``: which split of a data set that holds several is meant, unless its own ``split`` says it.
        class_names: the classes and their order, where they are known; a set may have fewer.

    Raises:
        UserError: every fault found in the files and folders.
    """
    parts = [described] if isinstance(described, SplitConfig) else list(described)
    datasets, faults = [], Faults()
    for part in parts:
        try:
            datasets.append(_load(part, role, degenerate))
        except UserError as error:
            faults.add(error)
    faults.raise_as(DataError)
    names = tuple(class_names or datasets[0].class_names)
    if len(datasets) == 1 and datasets[0].class_names == names:
        return datasets[0]
    return _merged(datasets, [str(part.annotations) for part in parts], names)


def _load(part: SplitConfig, role: str, degenerate: Degenerate) -> CocoDataset:
    path = Path(part.annotations)
    if not is_yolo(path) and not path.is_dir():
        if part.images is None:
            raise ConfigError(f"{path}: images: expected the folder that the file names are relative to, got nothing")
        return load_coco(path, part.images, degenerate=degenerate)
    faults, splits = Faults(str(path)), (part.split,) if part.split else _SPLITS[role]
    if is_yolo(path):
        content, folder = read_yolo(path, splits, faults)
    else:
        content, folder = read_voc(path, part.images, splits, faults)
    return dataset_of(check_content(content, folder, faults, degenerate), folder)


def _merged(datasets: Sequence[CocoDataset], sources: Sequence[str], class_names: tuple[str, ...]) -> CocoDataset:
    faults = Faults()
    for dataset, source in zip(datasets, sources, strict=True):
        if unknown := [name for name in dataset.class_names if name not in class_names]:
            faults.add(f"{source}: expected the classes {', '.join(class_names)}, got {', '.join(unknown)} besides")
    faults.raise_as(DataError)
    folder = Path(os.path.commonpath([dataset.folder.resolve() for dataset in datasets]))
    ids = {name: number for number, name in enumerate(class_names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for dataset in datasets:
        content = dataset.ground_truth(masks=True)
        numbers = {image["id"]: number for number, image in enumerate(content["images"], start=len(images) + 1)}
        names = {category["id"]: category["name"] for category in content["categories"]}
        inside = dataset.folder.resolve().relative_to(folder)
        for image in content["images"]:
            images.append({**image, "id": numbers[image["id"]], "file_name": str(inside / image["file_name"])})
        for annotation in content["annotations"]:
            new = {"id": len(annotations) + 1, "image_id": numbers[annotation["image_id"]]}
            annotations.append({**annotation, **new, "category_id": ids[names[annotation["category_id"]]]})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    merged = {"images": images, "annotations": annotations, "categories": categories}
    return dataset_of(check_content(merged, folder, Faults(" and ".join(sources)), "skip"), folder)
