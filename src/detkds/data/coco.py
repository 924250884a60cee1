"""A data set in the COCO layout: one annotation file, one folder of images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detkds.data.coco_file import AnnotationTable, CocoFile, Degenerate, ImageRecord, read_coco
from detkds.data.images import read_image
from detkds.data.masks import rasterize, segmentation_fault
from detkds.errors import DataError
from detkds.structures import Target

__all__ = ["AnnotationTable", "CocoDataset", "ImageRecord", "load_coco"]

_MOST_NAMED = 10


def load_coco(annotations: Path | str, images: Path | str, *, degenerate: Degenerate = "fail") -> CocoDataset:
    """Read and check a COCO annotation file and the folder its images lie in.

    Args:
        degenerate: what to do with boxes that have no area inside their image: name them as faults, or leave them out
            of training (they stay in the ground truth, as in the reference evaluator). COCO train2017 has two.

    Raises:
        DataError: every fault found in the file and the folder, up to 20, then their number.
    """
    content = read_coco(Path(annotations), Path(images), degenerate=degenerate)
    return dataset_of(content, Path(images))


def dataset_of(content: CocoFile, folder: Path) -> CocoDataset:
    """The data set of checked content."""
    return CocoDataset(content.images, content.class_names, content.category_ids, folder, content.table)


@dataclass(frozen=True, eq=False)
class CocoDataset:
    """Images with their annotations; a subset shares the annotations of the whole.

    Attributes:
        images: one record per image, in file order.
        class_names: one name per label; label k is the k-th category by ascending category id.
        category_ids: the file's category id of each label (gaps allowed).
        folder: where the image files lie.
        table: all annotations of the file, shared between subsets.
    """

    images: tuple[ImageRecord, ...]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    folder: Path
    table: AnnotationTable

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Number of foreground classes."""
        return len(self.class_names)

    @cached_property
    def image_ids(self) -> tuple[int, ...]:
        """The id of every image, in file order."""
        return tuple(record.id for record in self.images)

    @cached_property
    def records(self) -> dict[int, ImageRecord]:
        """Image records by id."""
        return {record.id: record for record in self.images}

    def require_masks(self, why: str) -> None:
        """Return quietly where every object and crowd region has a mask that can be drawn, as far as its form shows.

        Raises:
            DataError: naming the annotations without a segmentation, and ``why`` they need one.
        """
        missing = self._without_masks
        if missing:
            named = "; ".join(missing[:_MOST_NAMED]) + ("; ..." if len(missing) > _MOST_NAMED else "")
            raise DataError(f"{len(missing)} annotations lack a mask, and {why}: {named}")

    @cached_property
    def _without_masks(self) -> list[str]:
        """The annotations of these images that cannot be drawn, and why."""
        lines = []
        for record in self.images:
            for row in self.table.rows(record.id):
                fault = segmentation_fault(self.table.segmentations[row], record.height, record.width)
                if fault is not None:
                    lines.append(f"annotation {self.table.ids[row]} of image {record.id}: {fault}")
        return lines

    def subset(self, image_ids: Iterable[int]) -> CocoDataset:
        """The same data set with only these images, in file order; classes stay.

        Raises:
            DataError: an id is not in this data set.
        """
        wanted = set(image_ids)
        unknown = sorted(wanted - self.records.keys())
        if unknown:
            raise DataError(f"subset: {len(unknown)} image ids are not in the data set, the first is {unknown[0]}")
        return replace(self, images=tuple(record for record in self.images if record.id in wanted))

    def image(self, image_id: int) -> Tensor:
        """The image as ``(3, H, W)`` uint8 RGB, orientation as stored.

        Raises:
            DataError: the file is broken or has another size than the annotations say.
        """
        record = self.records[image_id]
        path = self.folder / record.file_name
        return read_image(path, image_id=image_id, width=record.width, height=record.height)

    def target(self, image_id: int, *, masks: bool = False) -> Target:
        """The objects of one image in original pixels; crowds only in ``crowd_boxes``.

        Shapes: ``boxes (R, 4)``, ``labels (R,)``, ``crowd_boxes (Q, 4)`` and, where asked, ``masks (R, H, W)`` bool.
        """
        table, rows = self.table, self.table.rows(image_id)
        span = slice(rows.start, rows.stop)
        keep, boxes = table.trainable[span], table.boxes[span]
        target = Target(
            boxes=torch.from_numpy(boxes[keep]),
            labels=torch.from_numpy(table.labels[span][keep]),
            crowd_boxes=torch.from_numpy(boxes[table.crowd[span]]),
        )
        if masks:
            record = self.records[image_id]
            drawn = np.zeros((int(keep.sum()), record.height, record.width), dtype=bool)
            for index, row in enumerate(np.flatnonzero(keep) + rows.start):
                where = f"annotation {table.ids[row]} of image {image_id}"
                drawn[index] = rasterize(table.segmentations[row], record.height, record.width, where=where)
            target["masks"] = torch.from_numpy(drawn)
        return target

    def object_table(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Every training object: position of its image in ``images``, its label, its box area in original pixels."""
        spans = [self.table.rows(image_id) for image_id in self.image_ids]
        rows = np.concatenate([np.arange(span.start, span.stop) for span in spans] or [np.zeros(0, np.int64)])
        positions = np.repeat(np.arange(len(spans)), [len(span) for span in spans])
        keep = self.table.trainable[rows]
        positions, rows = positions[keep], rows[keep]
        return positions, self.table.labels[rows], self.table.bbox[rows, 2] * self.table.bbox[rows, 3]

    def ground_truth(self, *, masks: bool = False) -> dict[str, list[dict[str, Any]]]:
        """A fresh COCO dict of these images with boxes and areas exactly as in the file, ids counted from 1.

        The reference matcher takes annotation id 0 for "unmatched", hence the ids of our own.
        """
        table = self.table
        bbox, area, crowd = table.bbox.tolist(), table.area.tolist(), table.crowd.tolist()
        annotations: list[dict[str, Any]] = []
        for image_id in self.image_ids:
            for row in table.rows(image_id):
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[table.labels[row]],
                    "bbox": bbox[row],
                    "area": area[row],
                    "iscrowd": int(crowd[row]),
                }
                if masks:
                    annotation["segmentation"] = table.segmentations[row]
                annotations.append(annotation)
        return {
            "images": [
                {"id": record.id, "file_name": record.file_name, "width": record.width, "height": record.height}
                for record in self.images
            ],
            "categories": [
                {"id": id_, "name": name} for id_, name in zip(self.category_ids, self.class_names, strict=True)
            ],
            "annotations": annotations,
        }
