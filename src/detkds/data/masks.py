"""Segmentations of the COCO format (polygons or run lengths) as bool masks, and back."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from faster_coco_eval.core import mask as coco_mask

from detkds.errors import DataError


def rasterize(segmentation: Any, height: int, width: int, *, where: str = "segmentation") -> np.ndarray:
    """Draw one object's segmentation as a ``(H, W)`` bool mask.

    Args:
        segmentation: a list of polygons ``[x1, y1, x2, y2, ...]``, or run lengths ``{"counts", "size"}`` with counts
            as numbers or as a compressed string.
        where: how to name the object in an error.

    Raises:
        DataError: the segmentation is empty, malformed or meant for another image size.
    """
    fault = segmentation_fault(segmentation, height, width)
    if fault is not None:
        raise DataError(f"{where}: masks were asked for, but {fault}; fix or remove it")
    try:
        runs = segmentation
        if isinstance(segmentation, list):
            runs = coco_mask.merge(cast(Any, coco_mask.frPyObjects(segmentation, height, width)))
        elif isinstance(segmentation["counts"], list):
            runs = coco_mask.frPyObjects(segmentation, height, width)
        return coco_mask.decode(cast(Any, runs)).astype(bool)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where}: the segmentation cannot be drawn ({error}); fix or remove it") from error


def segmentation_fault(segmentation: Any, height: int, width: int) -> str | None:
    """What keeps a segmentation from being drawn, as far as its form shows; None where nothing does."""
    if not segmentation:
        return "it has no segmentation"
    if isinstance(segmentation, dict):
        if not isinstance(segmentation.get("counts"), (list, str, bytes)):
            return f"its run lengths have no counts, but {', '.join(map(str, segmentation))}"
        if segmentation.get("size") != [height, width]:
            return f"expected run lengths of size {[height, width]}, got {segmentation.get('size')}"
        return None
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        return f"expected polygons or run lengths, got {str(segmentation)[:40]!r}"
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
        return "expected polygons of at least 3 x, y points"
    return None


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """Write a ``(H, W)`` bool mask as compressed run lengths that JSON can hold."""
    runs = cast(Any, coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))))
    counts = runs["counts"] if isinstance(runs["counts"], str) else runs["counts"].decode()
    return {
        "size": [int(side) for side in mask.shape],
        "counts": counts if isinstance(counts, str) else counts.decode(),
    }
