"""A small pair of dense outputs on which shipped policies are compared with loops over single numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from detkds import Distiller, load_policy
from detkds.structures import DetectorInfo, DetectorOutput, FeatureSpec, Layout, Target

STRIDES = {"p3": 8, "p4": 16}
LAYOUT = Layout("dense", "sigmoid", num_classes=3, anchors=2, regression="deltas", anchor_key="a")


def make_output(seed: int, channels: int = 4) -> DetectorOutput:
    """Two images in float64: 64 x 64 and 40 x 56 valid pixels, padded to 64 x 64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*leading: int) -> dict[str, Tensor]:
        return {
            level: torch.randn(2, *leading, 64 // s, 64 // s, generator=generator, dtype=torch.float64)
            for level, s in STRIDES.items()
        }

    low, extent = draw(2, 2), draw(2, 2)
    boxes = {
        level: torch.cat((20 + 15 * low[level], 20 + 15 * low[level] + 8 + 8 * extent[level].abs()), 1)
        for level in STRIDES
    }
    return DetectorOutput(draw(channels), torch.tensor([[64, 64], [40, 56]]), LAYOUT, draw(3, 2), draw(4, 2), boxes)


@dataclass
class Case:
    """One step of a policy between two detectors of equal channels."""

    student: DetectorOutput = field(default_factory=lambda: make_output(0))
    teacher: DetectorOutput = field(default_factory=lambda: make_output(1))
    targets: list[Target] = field(
        default_factory=lambda: [
            Target(boxes=torch.tensor([[4.0, 6.0, 38.0, 30.0], [30.0, 30.0, 61.0, 63.0]]), labels=torch.tensor([0, 2])),
            Target(boxes=torch.tensor([[8.0, 8.0, 14.0, 39.0]]), labels=torch.tensor([1])),
        ]
    )

    def distil(self, policy: str, step: int = 0) -> tuple[list[float], Distiller]:
        """The loss of every term of a shipped policy, and the distiller, whose adapters are trained no step yet."""
        info = DetectorInfo({level: FeatureSpec(4, s) for level, s in STRIDES.items()}, LAYOUT, regions=("main",))
        distiller = Distiller(load_policy(policy), student=info, teacher=info, total_steps=10).double()
        distiller.step = step
        losses = distiller(self.student, self.teacher, self.targets)
        return [loss.item() for loss in losses.values()], distiller

    def maps(self, adapt: Callable[[str, Tensor], Tensor] = lambda _, feature: feature) -> list[tuple[str, list, list]]:
        """Level, student's and teacher's map as nested lists ``[image][channel][row][column]``."""
        return [
            (level, adapt(level, self.student.features[level]).tolist(), self.teacher.features[level].tolist())
            for level in STRIDES
        ]


def is_valid(image: int, row: int, column: int, stride: int) -> bool:
    """Whether a cell begins inside the image."""
    height, width = ((64, 64), (40, 56))[image]
    return row * stride < height and column * stride < width


@pytest.fixture
def case() -> Case:
    """The pair."""
    return Case()


@pytest.fixture
def valid() -> Callable[[int, int, int, int], bool]:
    """``valid(image, row, column, stride)``."""
    return is_valid
