"""Batches: padding, order, determinism across stores, workers and processes, original pixels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable

import pytest
import torch

from detkds.config import AugmentationConfig
from detkds.data.coco import CocoDataset
from detkds.data.loader import evaluation_batches, training_batches, training_store
from detkds.data.store import ImageStore, network_size
from detkds.errors import DataError
from detkds.structures import Batch

JITTER = AugmentationConfig(flip=0.5, scale=(0.7, 1.6), crop=True, brightness=0.2, contrast=0.2, saturation=0.2)


def _digest(batches: Iterable[Batch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(batch.images.numpy().tobytes())
        digest.update(repr((batch.image_ids, batch.image_sizes.tolist())).encode())
        for target in batch.targets or []:
            digest.update(repr({key: value.tolist() for key, value in target.items()}).encode())  # type: ignore
    return digest.hexdigest()


def _train(dataset: CocoDataset, **changes: object) -> list[Batch]:
    arguments = {"size": 64, "batch_size": 4, "seed": 0, "epoch": 0, "augmentation": JITTER} | changes
    return list(training_batches(dataset, **arguments))  # type: ignore[arg-type]


def test_batches_are_padded_right_and_bottom_to_the_divisor(dataset: CocoDataset) -> None:
    for divisor in (32, 7):
        for batch in _train(dataset, divisor=divisor):
            height, width = batch.images.shape[-2:]
            assert height % divisor == width % divisor == 0
            assert height - divisor < int(batch.image_sizes[:, 0].max()) <= height
            assert width - divisor < int(batch.image_sizes[:, 1].max()) <= width
            for image, (rows, columns) in zip(batch.images, batch.image_sizes.tolist(), strict=True):
                assert not image[:, rows:].any() and not image[:, :, columns:].any()
                assert image[:, :rows, :columns].mean() > 0.2
            assert batch.images.dtype == torch.float32 and float(batch.images.max()) <= 1


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own(dataset: CocoDataset) -> None:
    orders = []
    for epoch in range(3):
        shown = [i for batch in _train(dataset, epoch=epoch) for i in batch.image_ids]
        assert sorted(shown) == list(dataset.image_ids)
        orders.append(tuple(shown))
    assert len(set(orders)) == 3


def test_more_draws_repeat_images_differently(dataset: CocoDataset) -> None:
    batches = _train(dataset, draws=28)
    assert [len(batch.image_ids) for batch in batches] == [4] * 7
    shown = Counter(i for batch in batches for i in batch.image_ids)
    assert sorted(shown.values()) == [2] * 5 + [3] * 6
    pictures = {
        (image_id, hashlib.sha256(image.numpy().tobytes()).hexdigest())
        for batch in batches
        for image_id, image in zip(batch.image_ids, batch.images, strict=True)
    }
    assert len(pictures) == 28


def test_fewer_draws_show_a_random_part(dataset: CocoDataset) -> None:
    parts = [tuple(i for b in _train(dataset, draws=4, epoch=e) for i in b.image_ids) for e in range(3)]
    assert all(len(set(part)) == 4 for part in parts) and len(set(parts)) == 3


def test_a_last_batch_of_one_is_left_out_unless_it_is_alone(dataset: CocoDataset) -> None:
    assert [len(b.image_ids) for b in _train(dataset, batch_size=5)] == [5, 5]
    assert [len(b.image_ids) for b in _train(dataset, batch_size=4)] == [4, 4, 3]
    assert [len(b.image_ids) for b in _train(dataset.subset([3]))] == [1]


def test_store_budget_workers_and_repetition_do_not_change_a_bit(dataset: CocoDataset) -> None:
    expected = _digest(_train(dataset))
    store = training_store(dataset, size=64, augmentation=JITTER)
    assert _digest(_train(dataset, store=store)) == expected
    assert store.full
    assert _digest(_train(dataset, store=store)) == expected
    assert _digest(_train(dataset, store=ImageStore(dataset, store.longer_side, budget_mb=0))) == expected
    state = torch.get_rng_state()
    assert _digest(_train(dataset, workers=2)) == expected
    assert torch.equal(state, torch.get_rng_state())
    assert _digest(_train(dataset, epoch=1)) != expected
    assert _digest(_train(dataset, seed=1)) != expected


def test_an_image_s_draw_does_not_depend_on_its_companions(dataset: CocoDataset) -> None:
    def pictures(batches: list[Batch]) -> dict[int, torch.Tensor]:
        return {
            image_id: image[:, : int(rows), : int(columns)]
            for batch in batches
            for image_id, image, (rows, columns) in zip(batch.image_ids, batch.images, batch.image_sizes, strict=True)
        }

    whole, part = pictures(_train(dataset)), pictures(_train(dataset.subset([2, 7, 9]), batch_size=2, draws=2))
    for image_id, image in part.items():
        assert torch.equal(image, whole[image_id])


def test_evaluation_shows_everything_once_with_little_padding(dataset: CocoDataset) -> None:
    batches = list(evaluation_batches(dataset, size=64, batch_size=3, divisor=1))
    assert sorted(i for b in batches for i in b.image_ids) == list(dataset.image_ids)
    assert _digest(batches) == _digest(evaluation_batches(dataset, size=64, batch_size=3, divisor=1, workers=2))

    def area(parts: Iterable[Batch]) -> int:
        return sum(b.images[:, 0].numel() for b in parts)

    unsorted = 0
    for start in range(0, len(dataset), 3):
        unsorted += area(
            evaluation_batches(dataset.subset(dataset.image_ids[start : start + 3]), size=64, batch_size=3, divisor=1)
        )
    assert area(batches) <= unsorted


def test_scales_lead_evaluation_boxes_back_to_original_pixels(dataset: CocoDataset) -> None:
    for size in (48, 200):
        for batch in evaluation_batches(dataset, size=size, batch_size=4):
            assert batch.scales is not None and batch.targets is not None
            assert int(batch.image_sizes.max()) == size
            for image_id, (y, x), target in zip(batch.image_ids, batch.scales, batch.targets, strict=True):
                back = target["boxes"] / torch.stack([x, y, x, y])
                assert torch.allclose(back, dataset.target(image_id)["boxes"], atol=1e-3)


def test_masks_come_at_the_image_s_size(dataset: CocoDataset) -> None:
    batch = next(evaluation_batches(dataset, size=48, batch_size=4, masks=True))
    for (rows, columns), target in zip(batch.image_sizes.tolist(), batch.targets or [], strict=True):
        assert target["masks"].shape == (len(target["boxes"]), rows, columns)
        areas = (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(1)
        assert torch.allclose(target["masks"].sum((1, 2)).float(), areas, rtol=0.3)


def test_a_broken_image_is_named_when_its_batch_is_made(dataset: CocoDataset) -> None:
    (dataset.folder / "3.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"3\.png: image 3"):
        _train(dataset)
    with pytest.raises(DataError, match=r"3\.png: image 3"):
        _train(dataset, workers=2)


def test_a_worker_tells_what_is_broken_in_one_line(dataset: CocoDataset) -> None:
    """A store without room makes the workers read; their tracebacks are no business of the user."""
    (dataset.folder / "3.png").write_bytes(b"nothing")
    store = training_store(dataset, size=64, augmentation=JITTER, budget_mb=0)
    with pytest.raises(DataError) as caught:
        _train(dataset, workers=2, store=store)
    (fault,) = caught.value.faults
    assert "3.png: image 3: cannot be read" in fault
    assert "Traceback" not in fault


def test_arguments_are_checked_before_any_image_is_read(dataset: CocoDataset) -> None:
    with pytest.raises(ValueError, match="batch_size: expected"):
        training_batches(dataset, size=64, batch_size=0, seed=0, epoch=0)
    with pytest.raises(ValueError, match="expected images of 103 pixels"):
        training_batches(
            dataset, size=64, batch_size=2, seed=0, epoch=0, augmentation=JITTER, store=ImageStore(dataset, 64)
        )
    with pytest.raises(ValueError, match="some of its images are missing"):
        evaluation_batches(dataset, size=64, batch_size=2, store=ImageStore(dataset.subset([3]), 64))


def test_network_size_keeps_the_aspect() -> None:
    assert network_size(427, 640, 320) == (214, 320)
    assert network_size(640, 427, 320) == (320, 214)
    assert network_size(1, 900, 100) == (1, 100)
