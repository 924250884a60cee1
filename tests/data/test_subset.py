"""Balanced parts: better than chance, complete where possible, disjoint, repeatable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from detkds.data.coco import AnnotationTable, CocoDataset, ImageRecord, load_coco
from detkds.data.subset import proxy_subset, split_validation, spread
from detkds.errors import DataError


def _synthetic(labels: list[list[int]], side: float = 10.0) -> CocoDataset:
    """One image per list, one box of ``side`` pixels per label; no files behind it."""
    images = tuple(ImageRecord(index, f"{index}.png", 500, 500) for index in range(len(labels)))
    ends = np.cumsum([len(part) for part in labels])
    flat = np.array([label for part in labels for label in part], dtype=np.int64)
    bbox = np.tile([0.0, 0.0, side, side], (len(flat), 1))
    table = AnnotationTable(
        spans={i: (int(end) - len(part), int(end)) for i, (end, part) in enumerate(zip(ends, labels, strict=True))},
        ids=np.arange(len(flat)),
        bbox=bbox,
        boxes=bbox.astype(np.float32),
        labels=flat,
        area=bbox[:, 2] * bbox[:, 3],
        crowd=np.zeros(len(flat), dtype=bool),
        trainable=np.ones(len(flat), dtype=bool),
        segmentations=[None] * len(flat),
    )
    count = int(flat.max()) + 1 if len(flat) else 1
    return CocoDataset(images, tuple(f"c{i}" for i in range(count)), tuple(range(count)), Path("none"), table)


def _classes(dataset: CocoDataset) -> set[int]:
    return set(dataset.object_table()[1].tolist())


def _unevenness(part: CocoDataset, whole: CocoDataset) -> float:
    """The spread by an obvious loop over class and size; a missed cell counts 1 more."""
    fractions, missed = [], 0
    for label in range(whole.num_classes):
        for low, high in ((0, 32**2), (32**2, 96**2), (96**2, np.inf)):
            counts = []
            for data in (part, whole):
                _, labels, areas = data.object_table()
                counts.append(sum(1 for k, a in zip(labels, areas, strict=True) if k == label and low <= a < high))
            missed += counts[1] > 0 and counts[0] == 0
            if counts[1] * len(part) >= len(whole):
                fractions.append(counts[0] / counts[1])
    return missed + max(fractions) - min(fractions)


def test_spread_by_hand() -> None:
    """Fractions 1/2, 1/4 and 0 of the cells 2, 4, 8 (the empty cell aside): one missed, spread 1/2.

    With a share of 1/4 a fair part holds half an object of the first cell, so the spread is 1/4 - 0.
    """
    cells, total = np.array([[1.0, 1.0, 0.0, 0.0]]), np.array([2.0, 4.0, 0.0, 8.0])
    for share, expected in ((0.5, 0.5), (0.25, 0.25), (0.01, 0.5)):
        missed, spreads = spread(cells, total, share)
        assert missed.tolist() == [1] and spreads.tolist() == [expected]


def test_a_chosen_part_is_more_even_than_random_ones(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("bccd")
    whole = load_coco(folder / "train.json", folder / "train")
    chosen = _unevenness(proxy_subset(whole, 60, seed=0, draws=500), whole)
    rng = np.random.default_rng(0)
    random = [_unevenness(whole.subset(rng.choice(whole.image_ids, 60, replace=False)), whole) for _ in range(20)]
    assert chosen < 0.5 * np.median(random)
    assert chosen < min(random)


def test_more_draws_are_never_worse_and_a_seed_repeats(rng: np.random.Generator) -> None:
    whole = _synthetic([rng.integers(0, 6, rng.integers(1, 5)).tolist() for _ in range(80)])
    scores = [_unevenness(proxy_subset(whole, 20, seed=3, draws=draws), whole) for draws in (1, 64, 640)]
    assert scores == sorted(scores, reverse=True) and scores[2] < scores[0]
    assert proxy_subset(whole, 20, seed=3).image_ids == proxy_subset(whole, 20, seed=3).image_ids
    assert proxy_subset(whole, 20, seed=3).image_ids != proxy_subset(whole, 20, seed=4).image_ids


def test_a_part_without_a_class_loses_to_one_with_it() -> None:
    """Class 1 is in 2 of 40 images: 5 random images miss it in 3 of 4 draws, the chosen ones never."""
    whole = _synthetic([[0]] * 38 + [[0, 1]] * 2)
    for seed in range(10):
        assert _classes(proxy_subset(whole, 5, seed=seed, draws=100)) == {0, 1}


def test_area_cuts_are_respected() -> None:
    whole = _synthetic([[0]] * 10, side=10.0)
    big = _synthetic([[0]] * 10, side=50.0).table
    whole.table.bbox[8:] = big.bbox[8:]
    for seed in range(5):
        part = proxy_subset(whole, 3, seed=seed, draws=200, area_cuts=(20.0**2, 96.0**2))
        assert (part.object_table()[2] > 400).any()


def test_split_is_disjoint_complete_and_repeatable(rng: np.random.Generator) -> None:
    whole = _synthetic([rng.integers(0, 4, rng.integers(0, 4)).tolist() for _ in range(50)])
    train, validation = split_validation(whole, 0.2, seed=1)
    assert len(validation) == 10
    assert sorted(train.image_ids + validation.image_ids) == list(whole.image_ids)
    assert split_validation(whole, 10, seed=1)[1].image_ids == validation.image_ids


def test_split_puts_rare_classes_on_both_sides() -> None:
    """Twelve classes of two images each among 200: no random draw finds a tenth with all, exchanges do."""
    labels = [[0] for _ in range(176)] + [[0, 1 + index // 2] for index in range(24)]
    whole = _synthetic(labels)
    for seed in range(3):
        train, validation = split_validation(whole, 20, seed=seed, draws=50)
        assert len(validation) == 20
        assert _classes(train) == _classes(validation) == set(range(13))


def test_a_class_of_one_image_stays_in_training() -> None:
    whole = _synthetic([[0]] * 6 + [[1]])
    for seed in range(8):
        train, validation = split_validation(whole, 3, seed=seed, draws=20)
        assert 1 in _classes(train) and len(validation) == 3


@pytest.mark.parametrize("part", [0, 50, 0.0, 1.0, 0.001, -1])
def test_impossible_splits_are_refused(part: float) -> None:
    with pytest.raises(DataError, match="validation split: expected"):
        split_validation(_synthetic([[0]] * 50), part, seed=0)


def test_impossible_subsets_are_refused() -> None:
    whole = _synthetic([[0]] * 5)
    for size in (0, 6):
        with pytest.raises(DataError, match="expected a size from 1 to 5"):
            proxy_subset(whole, size, seed=0)
    with pytest.raises(DataError, match="no objects"):
        proxy_subset(_synthetic([[], [], []]), 2, seed=0)
    assert proxy_subset(whole, 5, seed=0) is whole
