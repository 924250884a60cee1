"""Choosing a small part of a data set that still looks like the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from detkds.data.coco import CocoDataset
from detkds.errors import DataError

COCO_AREA_CUTS = (32.0**2, 96.0**2)
"""Box areas in square pixels that separate small, medium and large objects in COCO."""

_CHUNK = 64


def proxy_subset(
    dataset: CocoDataset,
    size: int,
    *,
    seed: int,
    draws: int = 1000,
    area_cuts: tuple[float, float] = COCO_AREA_CUTS,
) -> CocoDataset:
    """A part of ``size`` images in which every class and object size is represented alike.

    Of many random parts the one is kept whose sampled fraction, per class and size (small, medium, large), spreads
    least from the smallest to the largest cell; a part that misses a cell of the whole is taken only where all do,
    and then one that misses fewest. This is how COCO minitrain was chosen (Samet et al., HoughNet, 2020).

    Differs: a cell so rare that a fair share of it is less than one object has to be present, but does not count in
    the spread, which one lucky object would otherwise decide alone.

    Raises:
        DataError: the data set has fewer than ``size`` images, or no object to balance by.
    """
    if not 1 <= size <= len(dataset):
        raise DataError(f"proxy subset: expected a size from 1 to {len(dataset)} images, got {size}")
    if size == len(dataset):
        return dataset
    cells = _cells(dataset, area_cuts)
    rng = np.random.default_rng(seed)
    chosen = _best_draw(cells, len(dataset), size, rng, draws)
    return dataset.subset(dataset.image_ids[position] for position in np.flatnonzero(chosen))


def split_validation(
    dataset: CocoDataset,
    part: float | int,
    *,
    seed: int,
    draws: int = 1000,
    area_cuts: tuple[float, float] = COCO_AREA_CUTS,
) -> tuple[CocoDataset, CocoDataset]:
    """Cut a validation part off the training images: ``(training, validation)``, disjoint and together everything.

    Chosen like :func:`proxy_subset`; then images change sides until every class is in both parts, wherever two images
    hold it and one exchange can bring it there. A class that only one image holds stays in training.

    Args:
        part: a fraction in (0, 1) as float, or a number of validation images as int.

    Raises:
        DataError: a part would be empty, or there is no object to balance by.
    """
    size = part if isinstance(part, int) else round(part * len(dataset))
    if not 1 <= size < len(dataset) or (isinstance(part, float) and not 0 < part < 1):
        raise DataError(
            f"validation split: expected a fraction in (0, 1) or a count that leaves both parts at least one of "
            f"{len(dataset)} images, got {part}"
        )
    cells = _cells(dataset, area_cuts)
    rng = np.random.default_rng(seed)
    chosen = _best_draw(cells, len(dataset), size, rng, draws)
    classes = cells.toarray().reshape(len(dataset), -1, 3).sum(2) > 0
    _share_classes(classes, chosen, rng)
    ids = np.array(dataset.image_ids)
    return dataset.subset(ids[~chosen].tolist()), dataset.subset(ids[chosen].tolist())


def _cells(dataset: CocoDataset, area_cuts: tuple[float, float]) -> sparse.csr_array:
    """``(images, classes * 3)`` objects per image, class and size."""
    positions, labels, areas = dataset.object_table()
    if not len(positions):
        raise DataError("the data set has no objects, so no part of it can be balanced; check its annotations")
    sizes = np.digitize(areas, area_cuts)
    shape = (len(dataset), dataset.num_classes * 3)
    return sparse.coo_array((np.ones(len(positions)), (positions, labels * 3 + sizes)), shape=shape).tocsr()


def spread(cells: np.ndarray, total: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """How unevenly parts sample the non-empty cells of the whole.

    Args:
        cells: ``(D, cells)`` objects of D parts; ``total``: ``(cells,)`` objects of the whole.
        share: fraction of the images in a part; cells with less than 1 / share objects are left out of the spread,
            unless all are so rare.

    Returns:
        ``(D,)`` number of missed cells and ``(D,)`` largest minus smallest sampled fraction.
    """
    held = total > 0
    common = total * share >= 1
    fractions = cells[:, common if common.any() else held] / total[common if common.any() else held]
    return (cells[:, held] == 0).sum(1), fractions.max(1) - fractions.min(1)


def _best_draw(cells: sparse.csr_array, images: int, size: int, rng: np.random.Generator, draws: int) -> np.ndarray:
    """``(images,)`` bool: the draw that misses fewest cells and, of those, spreads least."""
    total = np.asarray(cells.sum(0)).ravel()
    best: tuple[float, float] = (np.inf, np.inf)
    chosen = np.zeros(images, dtype=bool)
    for start in range(0, max(1, draws), _CHUNK):
        count = min(_CHUNK, max(1, draws) - start)
        picks = np.stack([rng.choice(images, size, replace=False, shuffle=False) for _ in range(count)])
        indicator = sparse.csr_array(
            (np.ones(picks.size), picks.ravel(), np.arange(count + 1) * size), shape=(count, images)
        )
        counts: Any = indicator @ cells
        missed, spreads = spread(counts.toarray(), total, size / images)
        index = int(np.lexsort((spreads, missed))[0])
        score = (float(missed[index]), float(spreads[index]))
        if score < best:
            best = score
            chosen = np.zeros(images, dtype=bool)
            chosen[picks[index]] = True
    return chosen


def _share_classes(classes: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> None:
    """Exchange images between the parts, in place, until every class that two images hold is in both."""
    for label in np.argsort(classes.sum(0), kind="stable"):
        holders = classes[:, label]
        if not holders.any():
            continue
        if holders.sum() == 1:
            lacking = [False] if not (holders & ~chosen).any() else []
        else:
            lacking = [side for side in (True, False) if not (holders & (chosen == side)).any()]
        for side in lacking:
            _exchange(classes, chosen, int(label), side, rng)


def _exchange(classes: np.ndarray, chosen: np.ndarray, label: int, side: bool, rng: np.random.Generator) -> None:
    """Bring an image with ``label`` to ``side`` for one without, if no class then has fewer sides than before."""
    before = _sides_held(classes, chosen)
    for incoming in rng.permutation(np.flatnonzero((chosen != side) & classes[:, label])):
        for outgoing in rng.permutation(np.flatnonzero((chosen == side) & ~classes[:, label])):
            chosen[incoming], chosen[outgoing] = side, not side
            after = _sides_held(classes, chosen)
            others = np.arange(classes.shape[1]) != label
            if (after[others] >= before[others]).all() and after[label] >= before[label]:
                return
            chosen[incoming], chosen[outgoing] = not side, side


def _sides_held(classes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """``(classes,)`` in how many of the two parts each class occurs."""
    return classes[chosen].any(0).astype(int) + classes[~chosen].any(0)
