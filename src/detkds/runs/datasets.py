"""The images of a run: read, checked for what its pair needs, and cut into parts."""

from __future__ import annotations

from collections.abc import Sequence

from detkds.config import RunConfig
from detkds.data.coco import CocoDataset, load_coco
from detkds.data.digits import make_digits
from detkds.data.sources import load_split
from detkds.data.subset import proxy_subset, split_validation
from detkds.errors import ConfigError, DataError, Faults, UserError


def load_data(config: RunConfig) -> tuple[CocoDataset, CocoDataset]:
    """The training and the test images.

    Raises:
        DataError: every fault in the annotation files and image folders.
    """
    data, faults = config.data, Faults()
    if data.embedded is not None:
        train, test = data.embedded_images
        paths = make_digits(
            config.folder / "data",
            train=train,
            val=test,
            size=data.size,
            seed=config.seed,
            num_classes=data.embedded_classes,
        )
        return load_coco(*paths[0]), load_coco(*paths[1])
    sets: list[CocoDataset] = []
    for role, split in (("train", data.train), ("test", data.test)):
        if not split:
            faults.add(f"data.{role}: expected annotations and images, got nothing (or set data.embedded: digits)")
            continue
        try:
            known = sets[0].class_names if sets else None
            sets.append(load_split(split, role, degenerate=data.degenerate, class_names=known))
        except UserError as error:
            faults.add(error)
    faults.raise_as(ConfigError)
    return sets[0], sets[1]


def require_masks(data: Sequence[CocoDataset]) -> None:
    """Find out before anything is trained whether all objects have masks.

    Raises:
        DataError: naming the annotations that have none.
    """
    faults = Faults()
    for name, split in zip(("train", "test"), data, strict=True):
        try:
            split.require_masks("this pair learns masks")
        except UserError as error:
            faults.add(f"data.{name}: {error}")
    faults.raise_as(DataError)


def split_data(config: RunConfig, train: CocoDataset) -> tuple[CocoDataset, CocoDataset]:
    """The proxy's training images and its validation images, both cut from the training images."""
    proxy, validation = split_validation(train, config.proxy.validation, seed=config.search.seed)
    if config.proxy.images is not None and config.proxy.images < len(proxy):
        proxy = proxy_subset(proxy, config.proxy.images, seed=config.search.seed)
    return proxy, validation


def describe_data(dataset: CocoDataset) -> str:
    """``210 images, 381 objects, 6 classes``."""
    return f"{len(dataset)} images, {len(dataset.object_table()[0])} objects, {dataset.num_classes} classes"
