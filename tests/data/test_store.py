"""The image store: sizes, budget, preloading, copies."""

from __future__ import annotations

import pickle

import torch

from detkds.data.coco import CocoDataset
from detkds.data.store import ImageStore, network_size


def test_only_larger_images_are_resized(dataset: CocoDataset) -> None:
    store = ImageStore(dataset, 60)
    for record in dataset.images:
        height, width = record.height, record.width
        expected = network_size(height, width, 60) if max(height, width) > 60 else (height, width)
        assert store[record.id].shape == (3, *expected)
    whole = next(record.id for record in dataset.images if max(record.height, record.width) <= 60)
    assert torch.equal(store[whole], dataset.image(whole))


def test_a_kept_image_needs_no_file(dataset: CocoDataset) -> None:
    store = ImageStore(dataset, 60)
    store.preload(workers=2)
    assert store.full
    for record in dataset.images:
        (dataset.folder / record.file_name).unlink()
    assert store[3] is store[3]


def test_the_budget_bounds_what_is_kept(dataset: CocoDataset) -> None:
    store = ImageStore(dataset, 60, budget_mb=0)
    store.preload()
    assert not store.full
    assert store[3] is not store[3]


def test_a_copy_starts_empty_and_works(dataset: CocoDataset) -> None:
    store = ImageStore(dataset, 60)
    store.preload()
    copy = pickle.loads(pickle.dumps(store))
    assert not copy.full
    assert torch.equal(copy[3], store[3])
