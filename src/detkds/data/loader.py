"""Batches for training and evaluation; their content depends on the arguments alone, never on workers or order."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detkds.config import AugmentationConfig
from detkds.data.augment import NO_AUGMENTATION, Draw, apply, draw, image_generator, stable_seed
from detkds.data.coco import CocoDataset, ImageRecord
from detkds.data.store import ImageStore, network_size
from detkds.errors import DataError
from detkds.structures import Batch, Target


def training_store(
    dataset: CocoDataset, *, size: int, augmentation: AugmentationConfig = NO_AUGMENTATION, budget_mb: int = 2048
) -> ImageStore:
    """The store that :func:`training_batches` needs: large enough for the largest scale; share it between epochs."""
    longer_side = math.ceil(size * max(1.0, augmentation.scale[1]))
    return ImageStore(dataset, longer_side, budget_mb=budget_mb)


def training_batches(
    dataset: CocoDataset,
    *,
    size: int,
    batch_size: int,
    seed: int,
    epoch: int,
    augmentation: AugmentationConfig = NO_AUGMENTATION,
    draws: int | None = None,
    masks: bool = False,
    divisor: int = 32,
    store: ImageStore | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """One epoch of augmented batches.

    Args:
        size: longer side of an unscaled image in pixels.
        draws: images shown in the epoch, by default each once. More than there are repeats the data set in freshly
            shuffled passes with fresh draws; fewer shows a random part.
        masks: also give instance masks.
        divisor: batch height and width are padded up to a multiple of it.
        store: from :func:`training_store`, to share decoded images between epochs and candidates.
        workers: processes that prepare batches; 0 prepares them in this one. The batches are the same.
        rank, world: of ``world`` training processes, number ``rank`` gets every world-th batch and reads no other
            image. All get equally many; what is left over at the end is left out.

    Returns:
        :func:`batch_count` batches in order. A last batch of one image is left out (batch statistics need two),
        unless all batches are that small.

    Raises:
        DataError: there are fewer batches than processes, or an image is broken (when its batch is made).
    """
    store = store or training_store(dataset, size=size, augmentation=augmentation)
    _check(dataset, store, size, batch_size, divisor, math.ceil(size * max(1.0, augmentation.scale[1])))
    shown = list(_shuffled(dataset.image_ids, len(dataset) if draws is None else draws, seed, epoch))
    chunks = [shown[start : start + batch_size] for start in range(0, len(shown), batch_size)]
    if not 0 <= rank < world:
        raise ValueError(f"rank: expected a whole number from 0 to {world - 1}, got {rank}")
    chunks = chunks[rank::world][: batch_count(len(shown), batch_size, world)]
    plan = _Plan(dataset, store, size, divisor, masks, chunks, seed, epoch, augmentation)
    return _serve(plan, workers)


def batch_count(draws: int, batch_size: int, world: int = 1) -> int:
    """How many batches :func:`training_batches` gives each of ``world`` processes for ``draws`` images.

    Raises:
        DataError: there are fewer batches than processes.
    """
    total = math.ceil(draws / batch_size)
    if total > 1 and batch_size > 1 and draws % batch_size == 1:
        total -= 1
    if total < world:
        raise DataError(
            f"expected at least one batch for each of {world} processes, got {draws} images in {total} batches"
        )
    return total // world


def evaluation_batches(
    dataset: CocoDataset,
    *,
    size: int,
    batch_size: int,
    masks: bool = False,
    divisor: int = 32,
    store: ImageStore | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every image once, not augmented, in a fixed order by shape so that little is padded.

    Args are those of :func:`training_batches`; ``store`` is an ``ImageStore(dataset, size)``. ``Batch.scales`` leads
    predictions back to original pixels. Targets follow the rules of training (:func:`detkds.data.augment.apply`);
    average precision is measured on ``dataset.ground_truth()`` instead, which keeps every object.
    """
    store = store or ImageStore(dataset, size, budget_mb=0)
    _check(dataset, store, size, batch_size, divisor, size)

    def shape(image_id: int) -> tuple[int, int, int]:
        record = dataset.records[image_id]
        return (*network_size(record.height, record.width, size), image_id)

    ordered = [(image_id, 0) for image_id in sorted(dataset.image_ids, key=shape)]
    chunks = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
    return _serve(_Plan(dataset, store, size, divisor, masks, chunks), workers)


def _check(dataset: CocoDataset, store: ImageStore, size: int, batch_size: int, divisor: int, longer_side: int) -> None:
    for name, value in (("size", size), ("batch_size", batch_size), ("divisor", divisor)):
        if value < 1:
            raise ValueError(f"{name}: expected a whole number >= 1, got {value}")
    if store.longer_side != longer_side:
        raise ValueError(f"store: expected images of {longer_side} pixels for these arguments, got {store.longer_side}")
    if dataset is not store.dataset and not dataset.records.keys() <= store.dataset.records.keys():
        raise ValueError("store: expected a store of this data set, some of its images are missing")


def _shuffled(image_ids: Sequence[int], draws: int, seed: int, epoch: int) -> Iterator[tuple[int, int]]:
    """``draws`` image ids with their occurrence, in shuffled passes over all."""
    for occurrence in range(math.ceil(draws / len(image_ids)) if image_ids else 0):
        generator = torch.Generator().manual_seed(stable_seed("order", seed, epoch, occurrence))
        order = torch.randperm(len(image_ids), generator=generator).tolist()
        for position in order[: draws - occurrence * len(image_ids)]:
            yield image_ids[position], occurrence


class _Plan(Dataset[Batch]):
    """The batches of one epoch by index: which images, and how each is drawn. Without augmentation: evaluation."""

    def __init__(
        self,
        dataset: CocoDataset,
        store: ImageStore,
        size: int,
        divisor: int,
        masks: bool,
        chunks: list[list[tuple[int, int]]],
        seed: int = 0,
        epoch: int = 0,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        self.dataset, self.store, self.size, self.divisor, self.masks = dataset, store, size, divisor, masks
        self.chunks, self.seed, self.epoch, self.augmentation = chunks, seed, epoch, augmentation

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> Batch:
        images: list[Tensor] = []
        targets: list[Target] = []
        scales: list[tuple[float, float]] = []
        for image_id, occurrence in self.chunks[index]:
            how = Draw()
            if self.augmentation is not None:
                how = draw(image_generator(self.seed, self.epoch, image_id, occurrence), self.augmentation)
            record = self.dataset.records[image_id]
            out_size = network_size(record.height, record.width, self.size)
            stored = self.store[image_id]
            image, target = apply(stored, self._stored_target(record, stored), how, out_size)
            images.append(image)
            targets.append(target)
            scales.append((out_size[0] / record.height, out_size[1] / record.width))
        return Batch(
            images=_pad(images, self.divisor),
            image_sizes=torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64).reshape(-1, 2),
            image_ids=tuple(image_id for image_id, _ in self.chunks[index]),
            targets=targets,
            scales=None if self.augmentation is not None else torch.tensor(scales).reshape(-1, 2),
        )

    def _stored_target(self, record: ImageRecord, stored: Tensor) -> Target:
        """The target in pixels of the stored image; masks keep their own resolution."""
        target = self.dataset.target(record.id, masks=self.masks)
        factor = torch.tensor([stored.shape[2] / record.width, stored.shape[1] / record.height] * 2)
        target["boxes"] = target["boxes"] * factor
        target["crowd_boxes"] = target["crowd_boxes"] * factor
        return target


def _pad(images: Sequence[Tensor], divisor: int) -> Tensor:
    height, width = (math.ceil(max(image.shape[axis] for image in images) / divisor) * divisor for axis in (1, 2))
    padded = torch.zeros(len(images), 3, height, width)
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return padded


def _serve(plan: _Plan, workers: int) -> Iterator[Batch]:
    if workers <= 0 or len(plan) <= 1:
        return (plan[index] for index in range(len(plan)))
    plan.store.preload(workers)
    forks = "fork" in multiprocessing.get_all_start_methods()
    loader: DataLoader[Batch | DataError] = DataLoader(
        _Guarded(plan),
        batch_size=None,
        num_workers=min(workers, len(plan)),
        collate_fn=_unchanged,
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context="fork" if forks else None,
    )
    return _unless_broken(loader)


class _Guarded(Dataset[Batch | DataError]):
    """A plan in a worker process: hands over what is wrong with the data as it is, without the worker's traceback."""

    def __init__(self, plan: _Plan) -> None:
        self.plan = plan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Batch | DataError:
        try:
            return self.plan[index]
        except DataError as error:
            return error


def _unless_broken(loaded: Iterable[Batch | DataError]) -> Iterator[Batch]:
    for item in loaded:
        if isinstance(item, DataError):
            raise item
        yield item


def _unchanged(batch: Any) -> Any:
    return batch
