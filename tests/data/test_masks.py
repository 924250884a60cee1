"""Segmentations become masks, and masks run lengths."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from detkds.data.masks import rasterize, run_lengths
from detkds.errors import DataError


def test_polygon_rectangle() -> None:
    mask = rasterize([[1, 2, 4, 2, 4, 5, 1, 5]], 6, 7)
    expected = np.zeros((6, 7), dtype=bool)
    expected[2:5, 1:4] = True
    assert np.array_equal(mask, expected)


def test_uncompressed_runs_go_down_the_columns() -> None:
    """Counts 2, 3, 4 over 3 rows: 2 unset, then (2, 0), (0, 1), (1, 1) set, the rest unset."""
    mask = rasterize({"counts": [2, 3, 4], "size": [3, 3]}, 3, 3)
    assert sorted(zip(*np.nonzero(mask), strict=True)) == [(0, 1), (1, 1), (2, 0)]


def test_run_lengths_round_trip_through_json(rng: np.random.Generator) -> None:
    mask = rng.random((17, 23)) < 0.4
    written = json.loads(json.dumps(run_lengths(mask)))
    assert np.array_equal(rasterize(written, 17, 23), mask)


@pytest.mark.parametrize(
    "segmentation",
    [[], None, [[1, 2]], [[1, 2, 3, 4, 5]], {"counts": [9]}, {"counts": [9], "size": [4, 4]}, [["a"] * 6]],
)
def test_malformed_segmentations_are_named(segmentation: Any) -> None:
    with pytest.raises(DataError, match="annotation 4"):
        rasterize(segmentation, 3, 3, where="annotation 4")
