"""Detections matched one to one, worked by hand."""

from __future__ import annotations

import pytest
import torch

from detkds.exporters.parity import Parity, compare, match
from detkds.structures import Detections


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Squares of 10 px at x, with a score and a label."""
    boxes = torch.tensor([[x, 0.0, x + 10, 10.0] for x, _, _ in rows]).reshape(-1, 4)
    scores = torch.tensor([score for _, score, _ in rows])
    return Detections(boxes, scores, torch.tensor([label for _, _, label in rows], dtype=torch.int64))


def test_detections_are_paired_whatever_their_order() -> None:
    ours = detections((0, 0.9, 0), (50, 0.8, 1))
    theirs = detections((50.25, 0.8005, 1), (0, 0.9, 0))
    torch.testing.assert_close(match(ours, theirs), torch.tensor([[0.0, 0], [0.25, 0.0005]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("other", [(0.6, 0.9, 0), (0, 0.8985, 0), (0, 0.9, 1)])
def test_what_differs_in_place_score_or_class_is_no_pair(other: tuple[float, float, int]) -> None:
    assert len(match(detections((0, 0.9, 0)), detections(other))) == 0


def test_none_is_paired_twice_and_the_nearest_comes_first() -> None:
    ours, theirs = detections((0, 0.9, 0), (0.25, 0.9, 0)), detections((0.25, 0.9, 0))
    assert match(ours, theirs).tolist() == [[0, 0]]
    assert len(match(detections(), theirs)) == len(match(ours, detections())) == 0


def test_a_comparison_counts_over_images() -> None:
    image = torch.zeros(1)
    parity = compare(
        lambda image: detections((0, 0.9, 0)), lambda image: detections((0.125, 0.9, 0), (70, 0.5, 0)), [image, image]
    )
    assert parity == Parity(images=2, expected=2, detected=4, agreed=2, box_error=0.125, score_error=0.0)
    assert not parity.passed
    assert str(parity).startswith("2 of 4 detections in 2 images agree; the largest differences are 0.12 px and 0")


def test_nothing_compared_is_not_passed() -> None:
    empty = compare(lambda image: detections(), lambda image: detections(), [torch.zeros(1)])
    assert not empty.passed and "nothing to compare" in str(empty)
    assert Parity(1, 100, 100, 99, 0, 0).passed and not Parity(1, 100, 100, 98, 0, 0).passed
