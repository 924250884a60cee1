"""Small outputs of two detectors that the knowledge tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from detkds.structures import DetectorOutput, Layout, Target

STRIDES = {"p3": 8, "p4": 16}
DENSE = Layout("dense", "sigmoid", num_classes=3, anchors=2, regression="deltas", anchor_key="a")


def make_output(
    seed: int, sizes: Sequence[tuple[int, int]] = ((64, 64), (40, 56)), *, channels: int = 4, padded: int = 64
) -> DetectorOutput:
    """A dense output for images of these valid sizes, padded to a square; boxes are regression times ten."""
    generator = torch.Generator().manual_seed(seed)
    cells = {level: padded // stride for level, stride in STRIDES.items()}

    def draw(*leading: int) -> dict[str, torch.Tensor]:
        return {
            level: torch.randn(len(sizes), *leading, side, side, generator=generator) for level, side in cells.items()
        }

    regression = draw(4, DENSE.anchors)
    return DetectorOutput(
        features=draw(channels),
        image_sizes=torch.tensor(sizes),
        layout=DENSE,
        logits=draw(DENSE.num_classes, DENSE.anchors),
        regression=regression,
        boxes={level: 10 * value for level, value in regression.items()},
    )


def make_targets(boxes: Sequence[Sequence[Sequence[float]]]) -> list[Target]:
    """Targets with these boxes per image."""
    return [
        Target(
            boxes=torch.tensor(one, dtype=torch.float32).reshape(-1, 4), labels=torch.zeros(len(one), dtype=torch.int64)
        )
        for one in boxes
    ]


@pytest.fixture
def output() -> Callable[..., DetectorOutput]:
    """``output(seed)``: two images, one of 64 x 64 and one of 40 x 56 valid pixels."""
    return make_output


@pytest.fixture
def targets() -> Callable[..., list[Target]]:
    """``targets([[[x1, y1, x2, y2]], []])``: boxes per image."""
    return make_targets


@pytest.fixture
def strides() -> dict[str, int]:
    """The levels of the outputs."""
    return dict(STRIDES)
