"""Inputs of the reference values: what two detectors say of a batch, drawn from one seed.

The tests and the script that works the values out by the authors' code draw the same numbers from here, in float64.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SEED = 2026
STEP = 1000  # of the training, which random masks depend on; after every warm-up
CHANNELS, CLASSES, BINS, ROWS = 6, 4, 9, 24
HEIGHT, WIDTH = 128, 192


class Case(NamedTuple):
    """A batch: the valid height and width of each image, its objects as xyxy pixels, and the anchors of a cell."""

    sizes: tuple[tuple[int, int], ...]
    boxes: tuple[tuple[tuple[float, float, float, float], ...], ...]
    anchors: int = 1


_LARGE, _TALL, _SMALL = (3.0, 2.0, 181.0, 127.0), (70.5, 20.0, 103.0, 120.5), (30.0, 33.0, 36.0, 38.0)
CASES = {
    "unpadded": Case(((128, 192), (128, 192)), ((_LARGE, _SMALL), (_TALL,))),
    "padded": Case(((128, 192), (96, 128), (64, 192)), ((_TALL, _SMALL), ((8.0, 5.0, 120.0, 90.0),), (_SMALL,))),
    "empty": Case(((128, 192), (96, 128)), ((_LARGE, _TALL), ())),
    "anchors": Case(((128, 192), (96, 128)), ((_LARGE, _SMALL), (_SMALL,)), anchors=3),
}


@dataclass
class Side:
    """The tensors of one detector; maps by level, ``(N, ..., A, H, W)``, and rows of a region head."""

    features: dict[str, Tensor]
    logits: dict[str, Tensor]
    regression: dict[str, Tensor]
    boxes: dict[str, Tensor]
    distributions: dict[str, Tensor]
    rows: Tensor

    def leaves(self) -> dict[str, list[Tensor]]:
        """Every tensor by the name of its group, each to be given a gradient."""
        groups = {name: list(maps.values()) for name, maps in vars(self).items() if name != "rows"}
        return {**groups, "rows": [self.rows]}


@dataclass
class Inputs:
    """A case with everything drawn.

    Attributes:
        strides: pixels per cell of each level.
        regions: ``{name: {level: (N, 1, A, H, W)}}``, names as :class:`detkds.structures.Regions`; the coarsest level
            has no positive, and some anchors are neither positive nor background.
        positive: ``(ROWS, 1)``, 1 for the rows of objects.
    """

    case: Case
    strides: dict[str, int]
    student: Side
    teacher: Side
    regions: dict[str, dict[str, Tensor]]
    positive: Tensor

    @property
    def boxes(self) -> list[Tensor]:
        """The objects of each image, ``(R_i, 4)``."""
        return [torch.tensor(one, dtype=torch.float64).reshape(-1, 4) for one in self.case.boxes]

    @property
    def valid(self) -> dict[str, Tensor]:
        """``{level: (N, 1, 1, H, W)}`` of 0 and 1: the cells that begin inside their image."""
        valid = {}
        for level, stride in self.strides.items():
            rows, columns = torch.arange(HEIGHT // stride) * stride, torch.arange(WIDTH // stride) * stride
            inside = [(rows < height)[:, None] & (columns < width) for height, width in self.case.sizes]
            valid[level] = torch.stack(inside)[:, None, None].double()
        return valid


def draw(role: str, *shape: int) -> Tensor:
    """Normal numbers that depend on the seed and the role alone."""
    generator = torch.Generator().manual_seed(SEED * 1_000_003 + zlib.crc32(role.encode()))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def make_inputs(name: str, finest: int = 8, levels: int = 3) -> Inputs:
    """The inputs of one of :data:`CASES`, on so many levels from this stride on."""
    case = CASES[name]
    strides = {f"p{(finest << step).bit_length() - 1}": finest << step for step in range(levels)}
    teacher, student = _side(name, case, strides, None), None
    student = _side(name, case, strides, teacher)
    inputs = Inputs(case, strides, student, teacher, {}, (draw(f"{name} rows", ROWS, 1) > 0.4).double())
    for level, valid in inputs.valid.items():
        share = draw(f"{name} {level} region", len(case.sizes), 1, case.anchors, *valid.shape[-2:]).erf() / 2 + 0.5
        objects = torch.tensor([float(bool(one)) for one in case.boxes], dtype=torch.float64).view(-1, 1, 1, 1, 1)
        main = (share < 0.15) * valid * objects * (level != list(strides)[-1])
        ignored = (share > 0.85).double()
        around = (share > 0.4) * (share < 0.55) * valid * objects
        marks = {"main": main, "background": (1 - main) * (1 - ignored), "vlr": around * share, "centerness": main}
        marks["centerness"] = main * (0.2 + 4 * share)
        for region, weight in marks.items():
            inputs.regions.setdefault(region, {})[level] = weight
    return inputs


def _side(name: str, case: Case, strides: dict[str, int], teacher: Side | None) -> Side:
    """The teacher, or a student that agrees with it in part."""
    who = "teacher" if teacher is None else "student"
    images, anchors = len(case.sizes), case.anchors

    def maps(group: str, *leading: int, scale: float = 1.0, anchored: bool = True) -> dict[str, Tensor]:
        made = {}
        for level, stride in strides.items():
            shape = (images, *leading, *((anchors,) if anchored else ()), HEIGHT // stride, WIDTH // stride)
            noise = draw(f"{name} {who} {group} {level}", *shape)
            made[level] = (
                scale * noise if teacher is None else 0.7 * getattr(teacher, group)[level] + 0.5 * scale * noise
            )
        return made

    rows = 2 * draw(f"{name} {who} rows", ROWS, CLASSES + 1)
    return Side(
        maps("features", CHANNELS, anchored=False),
        maps("logits", CLASSES, scale=2.0),
        maps("regression", 4),
        {level: _boxes(f"{name} {level}", images, anchors, stride, who) for level, stride in strides.items()},
        maps("distributions", 4, BINS, scale=2.0),
        rows if teacher is None else 0.7 * teacher.rows + 0.5 * rows,
    )


def _boxes(role: str, images: int, anchors: int, stride: int, who: str) -> Tensor:
    """Boxes ``(N, 4, A, H, W)`` around the cells; the student's are the teacher's, shaken."""
    height, width = HEIGHT // stride, WIDTH // stride
    rows, columns = (stride * (torch.arange(count) + 0.5).double() for count in (height, width))
    centre = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)])[None, :, None]
    centre = centre + stride * draw(f"{role} centre", images, 2, anchors, height, width)
    half = stride * (1 + draw(f"{role} half", images, 2, anchors, height, width).abs())
    boxes = torch.cat([centre - half, centre + half], 1)
    return boxes if who == "teacher" else boxes + 0.3 * stride * draw(f"{role} shake", *boxes.shape)
