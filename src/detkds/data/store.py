"""Decoded, resized images kept in memory, so that a search decodes each file once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torchvision.transforms.v2.functional as functional
from torch import Tensor

from detkds.data.coco import CocoDataset


def network_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after resizing so that the longer side is ``size``, keeping the aspect.

    >>> network_size(240, 320, 128)
    (96, 128)
    """
    longer = max(height, width)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


class ImageStore:
    """Images of a data set with their longer side at most ``longer_side`` pixels, as ``(3, H, W)`` uint8.

    Images are kept until ``budget_mb`` is full; the others are read again each time, with the same result. Safe to use
    from several threads. A copy sent to another process starts empty.
    """

    def __init__(self, dataset: CocoDataset, longer_side: int, *, budget_mb: int = 2048) -> None:
        self.dataset = dataset
        self.longer_side = longer_side
        self.budget_mb = budget_mb
        self._images: dict[int, Tensor] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __getitem__(self, image_id: int) -> Tensor:
        """The image, from memory or from its file; do not change it in place.

        Raises:
            DataError: the file is broken.
        """
        kept = self._images.get(image_id)
        if kept is not None:
            return kept
        image = self.dataset.image(image_id)
        height, width = image.shape[-2:]
        if max(height, width) > self.longer_side:
            resized = functional.resize(image, list(network_size(height, width, self.longer_side)), antialias=True)
            image = resized.contiguous()
        with self._lock:
            if image_id not in self._images and self._bytes + image.nbytes <= self.budget_mb * 2**20:
                self._images[image_id] = image
                self._bytes += image.nbytes
        return image

    @property
    def full(self) -> bool:
        """Whether every image of the data set is in memory."""
        return len(self._images) >= len(self.dataset)

    def preload(self, workers: int = 1) -> None:
        """Read images until all are in memory or the budget is spent.

        Raises:
            DataError: a file is broken.
        """

        def read(image_id: int) -> None:
            record = self.dataset.records[image_id]
            height, width = record.height, record.width
            if max(height, width) > self.longer_side:
                height, width = network_size(height, width, self.longer_side)
            if self._bytes + 3 * height * width <= self.budget_mb * 2**20:
                self[image_id]

        with ThreadPoolExecutor(max(1, workers)) as pool:
            for _ in pool.map(read, (i for i in self.dataset.image_ids if i not in self._images)):
                continue

    def __getstate__(self) -> dict[str, Any]:
        return {"dataset": self.dataset, "longer_side": self.longer_side, "budget_mb": self.budget_mb}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _images={}, _bytes=0, _lock=threading.Lock())
